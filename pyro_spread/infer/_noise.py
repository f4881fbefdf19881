# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The argument ``noise`` of the losses: kernels by site, or a function that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pyro_spread.infer._critic import register_critic
from pyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.messages import general
from spread_core.noise.base import learned_of
from spread_core.noise.learned import name_of

Noise = Mapping[str, SpreadNoise] | Callable[..., Mapping[str, SpreadNoise]]


as_noise = BACKEND.as_noise
kernels_of = BACKEND.kernels_of


def register_noise(noise: Noise) -> None:
    """
    Put the params of learned noise into the store, where SVI looks for them.

    :param noise: of a loss, as it keeps it.
    """
    for key, learned in learned_of(noise).items():
        register_critic(name_of(key), learned)


def draw_at(site: str, kernel: SpreadNoise, value: torch.Tensor) -> torch.Tensor:
    """A noisy version of the value at ``site``, which errors name."""
    try:
        return kernel.draw(value)
    except (TypeError, ValueError) as error:
        raise type(error)(general.at_site(site, error)) from error
