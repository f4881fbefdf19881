# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The argument ``noise`` of the losses: kernels by site, or a function that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.messages import general

Noise = Mapping[str, SpreadNoise] | Callable[..., Mapping[str, SpreadNoise]]


as_noise = BACKEND.as_noise
kernels_of = BACKEND.kernels_of


def draw_at(site: str, kernel: SpreadNoise, value: torch.Tensor) -> torch.Tensor:
    """A noisy version of the value at ``site``, which errors name."""
    try:
        return kernel.draw(value)
    except (TypeError, ValueError) as error:
        raise type(error)(general.at_site(site, error)) from error
