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

from numpyro_spread.noise import MultiLevelNoise
from numpyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.messages import general, spreading

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
    with trace() as sites, seed(rng_seed=0), substitute(data=params):
        kernels = kernels_of(noise, args, kwargs)
    unknown = [n for n, s in sites.items() if s["type"] == "param" and n not in params]
    if unknown:
        raise ValueError(spreading.unregistered_params(unknown))
    return kernels


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


@contextmanager
def _naming(site: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(general.at_site(site, error)) from error
