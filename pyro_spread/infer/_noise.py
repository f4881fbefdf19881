# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The argument ``noise`` of the losses: kernels by site, or a function that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from pyro_spread.infer._critic import register_critic
from pyro_spread.noise import MultiLevelNoise
from pyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.messages import general
from spread_core.noise.learnable import learned_of
from spread_core.noise.learned import name_of
from spread_core.noise.levels import level_told

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
    with _naming(site):
        return kernel.draw(value)


def draw_told(
    site: str, kernel: SpreadNoise, value: torch.Tensor, event_dim: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """
    A noisy version of the value at ``site``, with what the scale of every datum was multiplied by,
    None if there is no such number, and the number of its level, None if the kernel has none.
    """
    index = None
    if isinstance(kernel, MultiLevelNoise):
        with _naming(site):
            y, index = kernel.draw_told(value)
    else:
        y = draw_at(site, kernel, value)
    return y, level_told(kernel, index, y, event_dim, _as_like), index


def _as_like(numbers: Any, y: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(numbers, dtype=y.dtype, device=y.device)


@contextmanager
def _naming(site: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(general.at_site(site, error)) from error
