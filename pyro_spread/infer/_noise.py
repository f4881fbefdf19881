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


def level_told(
    kernel: SpreadNoise, index: torch.Tensor | None, y: torch.Tensor, event_dim: int
) -> torch.Tensor | None:
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
        factor = torch.as_tensor(kernel._moved_by, dtype=y.dtype, device=y.device)
        level = factor.expand(shape) if level is None else factor * level
    return level


@contextmanager
def _naming(site: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(general.at_site(site, error)) from error
