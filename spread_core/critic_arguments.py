# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments of the ready-made critics."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

from spread_core.messages import players


def _is_size(value: object) -> bool:
    return isinstance(value, numbers.Integral) and int(value) > 0


def check_size(critic: str, argument: str, size: int) -> None:
    """
    Refuse what is not a positive integer.

    :param critic: name of the class.
    :param argument: name of its argument.
    :param size: what was given.
    """
    if not _is_size(size):
        raise ValueError(players.critic_size(critic, argument, size))


def check_sizes(critic: str, argument: str, sizes: Sequence[int]) -> None:
    """
    Refuse what is not a sequence of positive integers.

    :param critic: name of the class.
    :param argument: name of its argument.
    :param sizes: what was given.
    """
    if not isinstance(sizes, Sequence) or not all(_is_size(size) for size in sizes):
        raise ValueError(players.critic_sizes(critic, argument, sizes))


def check_input_dim(critic: str, input_dim: int | None) -> None:
    """
    Refuse what is neither None nor a positive integer.

    :param critic: name of the class.
    :param input_dim: what was given.
    """
    if input_dim is not None:
        check_size(critic, "input_dim", input_dim)


def check_activation(critic: str, activation: object, example: str) -> None:
    """
    Refuse what is not a function, such as a class that nobody has instantiated.

    :param critic: name of the class.
    :param activation: what was given.
    :param example: an activation of the backend.
    """
    if isinstance(activation, type) or not callable(activation):
        raise TypeError(players.critic_activation(critic, activation, example))


def check_features(critic: str, shape: Sequence[int], input_dim: int | None) -> None:
    """
    Refuse inputs of another width than was stated.

    :param critic: name of the class.
    :param shape: shape of the input.
    :param input_dim: the number of features; None for any.
    """
    if input_dim is not None and tuple(shape[-1:]) != (input_dim,):
        raise ValueError(players.critic_features(critic, shape, input_dim))


def check_image(image_shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int, int]:
    """
    The image shape as (C, H, W), after a check that the convolutions fit into it.

    :param image_shape: (H, W) or (C, H, W).
    :param channels: channels of each convolution; each halves height and width.
    """
    check_sizes("ConvCritic", "image_shape", image_shape)
    if len(image_shape) not in (2, 3):
        raise ValueError(players.critic_sizes("ConvCritic", "image_shape", image_shape))
    height, width = image_shape[-2:]
    if min(height, width) < 2 ** len(channels):
        raise ValueError(players.critic_image_too_small(image_shape, channels))
    return (image_shape[0] if len(image_shape) == 3 else 1), height, width
