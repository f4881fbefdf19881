# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The argument ``noise`` of the losses: kernels by site, or a function that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from pyro_spread.noise import MultiLevelNoise
from pyro_spread.noise.base import BACKEND, SpreadNoise
from spread_core.messages import general

Noise = Mapping[str, SpreadNoise] | Callable[..., Mapping[str, SpreadNoise]]


as_noise = BACKEND.as_noise
kernels_of = BACKEND.kernels_of


def draw_at(site: str, kernel: SpreadNoise, value: torch.Tensor) -> torch.Tensor:
    """A noisy version of the value at ``site``, which errors name."""
    with _naming(site):
        return kernel.draw(value)


def draw_told(
    site: str, kernel: SpreadNoise, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    A noisy version of the value at ``site``, and the number of the level of every datum.

    :return: None for the number if the kernel has no levels.
    """
    if not isinstance(kernel, MultiLevelNoise):
        return draw_at(site, kernel, value), None
    with _naming(site):
        return kernel.draw_told(value)


def levels_at(kernel: MultiLevelNoise, index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The levels of these numbers."""
    return torch.as_tensor(kernel.levels, dtype=like.dtype, device=like.device)[index]


@contextmanager
def _naming(site: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(general.at_site(site, error)) from error
