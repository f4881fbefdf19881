# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Checks shared by the reference formulas, the sample metrics and the plots."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spread_core.messages import players

FloatArray = NDArray[np.float64]


def as_float(value: ArrayLike, name: str) -> FloatArray:
    """Return ``value`` as a float64 array.

    :param value: Anything NumPy can read as real numbers.
    :param name: The caller's argument, for the message.
    :raises ValueError: If it cannot be read as real numbers.
    """
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must hold real numbers: {error}") from error


def as_host(value: Any) -> FloatArray:
    """Return an array or tensor of either backend as a float64 array of NumPy.

    :param value: The array, on any device.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu().double()  # NumPy has no bfloat16
    return np.asarray(value, np.float64)


def as_finite(value: ArrayLike, name: str) -> FloatArray:
    """Return ``value`` as a float64 array without NaN or inf.

    :param value: Anything NumPy can read as real numbers.
    :param name: The caller's argument, for the message.
    :raises ValueError: If an entry is NaN or infinite.
    """
    array = as_float(value, name)
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ValueError(f"`{name}` must be finite, but {bad} of its {array.size} entries are not.")
    return array


def as_positive(value: ArrayLike, name: str, *, allow_inf: bool = False) -> FloatArray:
    """Return ``value`` as a float64 array of positive numbers.

    :param value: Anything NumPy can read as real numbers.
    :param name: The caller's argument, for the message.
    :param allow_inf: Whether infinity is a valid value.
    :raises ValueError: If an entry is NaN, zero, negative or (unless allowed) infinite.
    """
    array = as_float(value, name)
    valid = (array > 0) & (np.isfinite(array) | allow_inf)
    if not valid.all():
        first = array[~valid].flat[0]
        raise ValueError(f"`{name}` must be positive, got {first}.")
    return array


def as_probability(value: float, name: str) -> float:
    """Return ``value`` as a float strictly between 0 and 1.

    :param value: The number.
    :param name: The caller's argument, for the message.
    :raises ValueError: If it is not inside the open unit interval.
    """
    number = float(value)
    if not 0.0 < number < 1.0:
        raise ValueError(f"`{name}` must lie strictly between 0 and 1, got {number}.")
    return number


def as_covariance(value: ArrayLike, name: str) -> FloatArray:
    """Return ``value`` as a symmetric float64 matrix.

    Definiteness is left to the factorisation that needs it: clean covariances are often singular.

    :param value: Array of shape ``(dim, dim)``.
    :param name: The caller's argument, for the message.
    :raises ValueError: If it is not a finite, square, symmetric matrix.
    """
    matrix = as_finite(value, name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`{name}` must be a square matrix, got shape {matrix.shape}.")
    largest = float(np.abs(matrix).max(initial=0.0))
    if not np.allclose(matrix, matrix.T, rtol=0.0, atol=1e-10 * largest):
        raise ValueError(f"`{name}` must be symmetric.")
    return (matrix + matrix.T) / 2


def as_weights(weights: ArrayLike | None, num: int, name: str) -> FloatArray:
    """Return the weights of ``num`` atoms, uniform if left out.

    :param weights: Probabilities of shape ``(num,)``, or None.
    :param num: Number of atoms.
    :param name: The caller's argument, for the message.
    :raises ValueError: If the shape is wrong, an entry is negative or the sum is not one.
    """
    if weights is None:
        return np.full(num, 1.0 / num)
    array = as_finite(weights, name)
    if array.shape != (num,):
        raise ValueError(f"`{name}` must have shape {(num,)}, got {array.shape}.")
    if (array < 0).any() or not math.isclose(float(array.sum()), 1.0, rel_tol=1e-9):
        raise ValueError(f"`{name}` must be probabilities that sum to one, got sum {array.sum()}.")
    return array


def as_samples(value: ArrayLike, name: str) -> FloatArray:
    """Return samples as a float64 matrix with one flattened sample per row.

    :param value: Array of shape ``(num_samples,) + event_shape``.
    :param name: The caller's argument, for the message.
    :return: Array of shape ``(num_samples, event_size)``.
    :raises ValueError: If there is no event dimension, fewer than two samples, or a NaN or inf.
    """
    array = as_float(value, name)
    if array.ndim < 2:
        raise ValueError(
            f"`{name}` must have shape (num_samples,) + event_shape, got {array.shape}; "
            f"pass {name}[:, None] for scalar samples."
        )
    if array.shape[0] < 2:
        raise ValueError(f"`{name}` must hold at least 2 samples, got {array.shape[0]}.")
    if array.size == 0:
        raise ValueError(f"`{name}` has an empty event: its shape is {array.shape}.")
    return as_finite(array, name).reshape(array.shape[0], -1)


def as_sample_pair(
    x: ArrayLike, y: ArrayLike, name_x: str = "x", name_y: str = "y"
) -> tuple[FloatArray, FloatArray]:
    """Return two sets of samples over the same event as matrices.

    :param x: Array of shape ``(num_x,) + event_shape``.
    :param y: Array of shape ``(num_y,) + event_shape``.
    :param name_x: The caller's first argument, for the message.
    :param name_y: The caller's second argument, for the message.
    :raises ValueError: As :func:`as_samples`, and if the event shapes differ.
    """
    flat_x, flat_y = as_samples(x, name_x), as_samples(y, name_y)
    shape_x, shape_y = np.shape(x)[1:], np.shape(y)[1:]
    if shape_x != shape_y:
        raise ValueError(
            f"`{name_x}` and `{name_y}` must have the same event shape, "
            f"got {shape_x} and {shape_y}."
        )
    return flat_x, flat_y


def as_count(value: int, name: str, minimum: int = 1) -> int:
    """Return ``value`` as an int that is at least ``minimum``.

    :param value: The number.
    :param name: The caller's argument, for the message.
    :param minimum: Smallest allowed value.
    :raises ValueError: If it is not an integer or is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, got {value!r}.")
    return int(value)


def check_count(argument: str, value: object, least: int = 1) -> None:
    """
    Raise an error for anything that is not a count, in the words of the losses.

    :param argument: The caller's argument.
    :param value: Its value.
    :param least: The least it may be.
    :raises ValueError: If it is not an integer or less than ``least``.
    """
    if not isinstance(value, Integral) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(players.bad_range(argument, value, wanted))
