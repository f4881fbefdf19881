# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""
Checks of arguments. Each returns the value in its final type, or raises an error that names it.

``name`` is always the caller's argument, for the message.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spread_core.messages import players

FloatArray = NDArray[np.float64]


def as_float(value: ArrayLike, name: str) -> FloatArray:
    """Return anything that NumPy reads as real numbers as a float64 array, else ``ValueError``."""
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must hold real numbers: {error}") from error


def as_host(value: Any) -> FloatArray:
    """Return an array or tensor of either backend, on any device, as a float64 array of NumPy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double()  # NumPy has no bfloat16
    return np.asarray(value, np.float64)


def as_finite(value: ArrayLike, name: str) -> FloatArray:
    """Return a float64 array; ``ValueError`` if an entry is NaN or infinite."""
    array = as_float(value, name)
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ValueError(f"`{name}` must be finite, but {bad} of its {array.size} entries are not.")
    return array


def as_positive(value: ArrayLike, name: str, *, allow_inf: bool = False) -> FloatArray:
    """
    Return a float64 array of positive numbers.

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
    """Return a float; ``ValueError`` unless it lies strictly between 0 and 1."""
    number = float(value)
    if not 0.0 < number < 1.0:
        raise ValueError(f"`{name}` must lie strictly between 0 and 1, got {number}.")
    return number


def as_covariance(value: ArrayLike, name: str) -> FloatArray:
    """
    Return a finite, square, symmetric float64 matrix, else ``ValueError``.

    Definiteness is left to the factorisation that needs it: clean covariances are often singular.
    """
    matrix = as_finite(value, name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`{name}` must be a square matrix, got shape {matrix.shape}.")
    largest = float(np.abs(matrix).max(initial=0.0))
    if not np.allclose(matrix, matrix.T, rtol=0.0, atol=1e-10 * largest):
        raise ValueError(f"`{name}` must be symmetric.")
    return (matrix + matrix.T) / 2


def as_weights(weights: ArrayLike | None, num: int, name: str) -> FloatArray:
    """
    Return the weights of ``num`` atoms, uniform for None.

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
    """
    Return samples as a float64 matrix with one flattened sample per row.

    :param value: Array of shape ``(num_samples,) + event_shape``.
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
    """
    Return two sets of samples over the same event as matrices, each as :func:`as_samples` does.

    :raises ValueError: Also if the event shapes differ.
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
    """Return an int; ``ValueError`` if the value is no integer or less than ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, got {value!r}.")
    return int(value)


def check_count(argument: str, value: object, least: int = 1) -> None:
    """Raise a ``ValueError`` in the words of the losses unless the value is an integer >= least."""
    if not isinstance(value, Integral) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(players.bad_range(argument, value, wanted))


def check_seed(value: object, or_key: str = "") -> None:
    """Raise a ``TypeError`` unless a seed is an integer; ``or_key`` says what else it may be."""
    if not isinstance(value, Integral):
        raise TypeError(players.bad_range("seed", value, f"an integer{or_key}"))
