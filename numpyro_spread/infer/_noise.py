# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The argument ``noise`` of the losses: kernels by site, or a function that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import prng_key
from numpyro.handlers import seed, substitute, trace

from numpyro_spread.infer._registration import declare_params
from numpyro_spread.noise import MultiLevelNoise
from numpyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.messages import general, moving, spreading
from spread_core.noise.learnable import learned_of
from spread_core.noise.learned import name_of
from spread_core.noise.levels import level_told

Noise = Mapping[str, SpreadNoise] | Callable[..., Mapping[str, SpreadNoise]]


as_noise = BACKEND.as_noise
kernels_of = BACKEND.kernels_of


def kernels_with_params(
    noise: Noise, params: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """
    The kernels of this step, made with params that are given.

    :raises ValueError: if a callable ``noise`` has params that SVI does not know.
    """
    learned = learned_of(noise)
    fixed = noise if callable(noise) else {n: k for n, k in noise.items() if n not in learned}
    with trace() as sites, seed(rng_seed=0), substitute(data=params):
        kernels = kernels_of(fixed, args, kwargs)
    unknown = {n: s["type"] for n, s in sites.items() if n not in params}
    untrained = [name for name, kind in unknown.items() if kind == "param"]
    untrained += [_params_of(key) for key in learned if _params_of(key) not in params]
    if untrained:
        raise ValueError(spreading.unregistered_params(untrained))
    if untold := [name for name, kind in unknown.items() if kind == "mutable"]:
        raise ValueError(moving.state_not_given(untold))
    for key, own in learned.items():
        kernels[key] = own._played(params[_params_of(key)])
    return kernels if callable(noise) else {name: kernels[name] for name in noise}


def declare_noise(noise: Noise) -> None:
    """
    Declare the params of learned noise, in a run of the guide.

    :param noise: of a loss, as it keeps it.
    """
    for key, learned in learned_of(noise).items():
        # A key only where there is a net: all that is drawn after it would be another draw.
        init = learned.init if learned._chain is None else lambda n=learned: n.init(prng_key())
        declare_params(_params_of(key), init)


def _params_of(key: str) -> str:
    return f"{name_of(key)}$params"


def kernels_now(
    noise: Noise, params: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The kernels of this step; those of a callable have no params of their own."""
    if callable(noise):
        return kernels_of(noise, args, kwargs)
    return kernels_with_params(noise, params, args, kwargs)


def draw_at(rng_key: jax.Array, site: str, kernel: SpreadNoise, value: Any) -> jax.Array:
    """A noisy version of the value at ``site``, which errors name."""
    with _naming(site):
        return kernel.draw(rng_key, value)


def draw_told(
    rng_key: jax.Array, site: str, kernel: SpreadNoise, value: Any, event_dim: int
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """
    A noisy version of the value at ``site``, with what the scale of every datum was multiplied by,
    None if there is no such number, and the number of its level, None if the kernel has none.
    """
    index = None
    if isinstance(kernel, MultiLevelNoise):
        with _naming(site):
            y, index = kernel.draw_told(rng_key, value)
    else:
        y = draw_at(rng_key, site, kernel, value)
    return y, level_told(kernel, index, y, event_dim, _as_like), index


def _as_like(numbers: Any, y: jax.Array) -> jax.Array:
    return jnp.asarray(numbers, y.dtype)


@contextmanager
def _naming(site: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(general.at_site(site, error)) from error
