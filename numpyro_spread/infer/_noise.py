# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The argument ``noise`` of the losses: kernels by site, or a function that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from numpyro.handlers import seed, substitute, trace

from numpyro_spread.infer._registration import declare_params
from numpyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.messages import general, spreading
from spread_core.noise.base import learned_of
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
    unknown = [n for n, s in sites.items() if s["type"] == "param" and n not in params]
    unknown += [_params_of(key) for key in learned if _params_of(key) not in params]
    if unknown:
        raise ValueError(spreading.unregistered_params(unknown))
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


def draw_at(rng_key: jax.Array, site: str, kernel: SpreadNoise, value: Any) -> jax.Array:
    """A noisy version of the value at ``site``, which errors name."""
    try:
        return kernel.draw(rng_key, value)
    except (TypeError, ValueError) as error:
        raise type(error)(general.at_site(site, error)) from error
