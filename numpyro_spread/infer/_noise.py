# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The argument ``noise`` of the losses: kernels by site, or a function that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.handlers import seed, substitute, trace

from numpyro_spread.infer._registration import declare_params
from numpyro_spread.noise import MultiLevelNoise
from numpyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.messages import general, moving, spreading
from spread_core.noise.learnable import learned_of
from spread_core.noise.learned import name_of

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
    with trace() as sites, seed(rng_seed=0), substitute(data=params):
        kernels = kernels_of(noise, args, kwargs)
    unknown = {n: s["type"] for n, s in sites.items() if n not in params}
    untrained = [name for name, kind in unknown.items() if kind == "param"]
    untrained += [_params_of(key) for key in learned if _params_of(key) not in params]
    if untrained:
        raise ValueError(spreading.unregistered_params(untrained))
    if untold := [name for name, kind in unknown.items() if kind == "mutable"]:
        raise ValueError(moving.state_not_given(untold))
    for key, own in learned.items():
        kernels[key] = own._played(params[_params_of(key)])
    return kernels


def declare_noise(noise: Noise) -> None:
    """
    Declare the params of learned noise, in a run of the guide.

    :param noise: of a loss, as it keeps it.
    """
    for key, learned in learned_of(noise).items():
        declare_params(_params_of(key), learned.init)


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
    rng_key: jax.Array, site: str, kernel: SpreadNoise, value: Any
) -> tuple[jax.Array, jax.Array | None]:
    """
    A noisy version of the value at ``site``, and the number of the level of every datum.

    :return: None for the number if the kernel has no levels.
    """
    if not isinstance(kernel, MultiLevelNoise):
        return draw_at(rng_key, site, kernel, value), None
    with _naming(site):
        return kernel.draw_told(rng_key, value)


def levels_at(kernel: MultiLevelNoise, index: jax.Array, like: jax.Array) -> jax.Array:
    """The levels of these numbers."""
    return jnp.asarray(kernel.levels, like.dtype)[index]


def level_told(
    kernel: SpreadNoise, index: jax.Array | None, y: jax.Array, event_dim: int
) -> jax.Array | None:
    """
    What the scale of every datum was multiplied by; None if it is always the same.

    :param kernel: the kernel of this step.
    :param index: the numbers of its levels, if it has several.
    :param y: noisy values of shape batch + event.
    :param event_dim: number of event dims.
    """
    level: Any = None
    if isinstance(kernel, MultiLevelNoise) and index is not None:
        level = levels_at(kernel, index, y)
    if kernel._moved_by is not None:
        shape = y.shape[: y.ndim - event_dim]
        factor = jnp.asarray(kernel._moved_by, y.dtype)
        level = jnp.broadcast_to(factor, shape) if level is None else factor * level
    return level


@contextmanager
def _naming(site: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(general.at_site(site, error)) from error
