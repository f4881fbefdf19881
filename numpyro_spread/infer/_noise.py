# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The argument ``noise`` of the losses: kernels by site, or a function that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from numpyro_spread.handlers import check_noise
from numpyro_spread.noise import SpreadNoise
from spread_core.messages import general

Noise = Mapping[str, SpreadNoise] | Callable[..., Mapping[str, SpreadNoise]]


def as_noise(noise: Noise | None) -> Noise:
    """``noise`` as a loss keeps it: a checked dict, empty for None, or the callable."""
    if noise is None:
        return {}
    by_call = callable(noise) and not isinstance(noise, SpreadNoise)  # kernels are callable too
    return noise if by_call else check_noise(noise)


def kernels_of(noise: Noise, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The kernels of this step."""
    return check_noise(noise(*args, **kwargs)) if callable(noise) else dict(noise)


def draw_at(rng_key: jax.Array, site: str, kernel: SpreadNoise, value: Any) -> jax.Array:
    """A noisy version of the value at ``site``, which errors name."""
    try:
        return kernel.draw(rng_key, value)
    except (TypeError, ValueError) as error:
        raise type(error)(general.at_site(site, error)) from error
