# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
What is inside of plates as few numbers, whatever the order of the elements.

A mean over few elements tells less of what they have in common than one over many. Where their
number varies it is shrunk as far as it is to be believed: by credibility theory (Bühlmann 1967,
ASTIN Bulletin 4), and in nested plates from the inside out (Jewell 1975). The variances are
estimated from simulations, so that a regression on such means is as good at 3 elements as at 50.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from spread_core.amortized.layout import Group
from spread_core.math._arrays import Array, cast

#: Numbers that stand for what is in some plates, of a group of data, the plates that are left, its
#: vectors, what counts of them, and the axes over which to pool.
Pool = Callable[[Group, frozenset[str], Array, Any, list[int]], list[Array]]

#: What is seen of data in one's own plates, of their group, its vectors, what counts of them.
Inside = Callable[[Group, Array, Any], list[Array]]

# Against so many elements of a prior a mean is believed, where no variances are known.
_AGAINST = (1.0, 4.0, 16.0)

# So many numbers of an element are seen by how they go together.
_MOST_TOGETHER = 8
# Against their whole variance, of which rounding in single precision takes a part of 5e-7.
_RIDGE = 2e-6

# A variance between plates below this part of that inside cannot be told from none.
_LEAST = 1e-3


def moments(
    data: Group, level: frozenset[str], own: Array, mask: Any, axes: list[int]
) -> list[Array]:
    """Mean, spread and count of what is learned; see :data:`Pool`."""
    return pooled(own, mask, axes)


def as_it_is(data: Group, own: Array, mask: Any) -> list[Array]:
    """The vectors, and which of them count; see :data:`Inside`."""
    if mask is None:
        return [own]
    return [own, array_namespace(own).astype(mask, own.dtype)[..., None]]


def pooled(
    columns: Array,
    mask: Array | None,
    axes: Sequence[int],
    against: Array | None = None,
    together: bool = False,
) -> list[Array]:
    """
    What is inside of plates as one element: mean and log standard deviation; if the number of
    elements varies, the mean as far as it is to be believed, and the log of that number too.

    :param columns: of shape lead + plates + (size,).
    :param mask: which elements count, of shape lead + plates; None if their number does not vary.
    :param axes: the axes of the plates to pool over, negative, of the shape with (size,).
    :param against: what :func:`fit_against` returned; None gives the mean, and the mean as it is to
        be believed for several ratios of variances.
    :param together: whether to add the log standard deviation of each number given those before
        it; gradients of that are steep.
    :return: arrays with size 1 at these axes. Without any element means are 0.
    """
    xp = array_namespace(columns)
    along = tuple(axes)
    weights = xp.ones_like(columns[..., :1])
    if mask is not None:
        weights = weights * xp.astype(mask, columns.dtype)[..., None]
    count = xp.sum(weights, axis=along, keepdims=True)
    some = xp.clip(count, 1, None)
    mean = xp.sum(weights * columns, axis=along, keepdims=True) / some
    centred = columns - mean
    variance = xp.sum(weights * centred**2, axis=along, keepdims=True) / some
    found = [mean, 0.5 * xp.log(variance + 1e-2)]
    if together and 1 < columns.shape[-1] <= _MOST_TOGETHER:
        found.append(_conditional_spreads(centred, weights, axes))
    if mask is None:
        return found
    if against is not None:
        found[0] = _believed(columns, weights, axes, against)
        return [*found, xp.log(count + 0.5)]
    return [*found, xp.log(count + 0.5), *(mean * (count / (count + c)) for c in _AGAINST)]


def _conditional_spreads(centred: Array, weights: Array, axes: Sequence[int]) -> Array:
    """
    Log standard deviation of each number, given the numbers before it.

    Where each element is a short series, the noise round its line may be far smaller than what its
    numbers share. Means and spreads do not show it; what is left of a number that others predict
    does.
    """
    xp, ndim, size = array_namespace(centred), centred.ndim, centred.shape[-1]
    shape = [1 if axis - ndim in axes else full for axis, full in enumerate(centred.shape)]
    kept = [axis for axis in range(ndim - 1) if axis - ndim not in axes]
    order = (*kept, *(axis + ndim for axis in axes), ndim - 1)
    lead = tuple(centred.shape[axis] for axis in kept)
    centred, weights = (
        xp.reshape(xp.permute_dims(x, order), (*lead, -1, x.shape[-1])) for x in (centred, weights)
    )
    some = xp.clip(xp.sum(weights, axis=-2, keepdims=True), 1, None)
    covariance = xp.matmul(xp.matrix_transpose(weights * centred), centred) / some
    # Far above rounding, so that fewer elements than numbers have spreads too.
    total = xp.sum(xp.linalg.diagonal(covariance), axis=-1)[..., None, None]
    ridge = _RIDGE * (1 + total) * cast(np.eye(size), centred)
    spreads = xp.log(xp.linalg.diagonal(xp.linalg.cholesky(covariance + ridge)))
    return xp.reshape(spreads, tuple(shape))


def _believed(columns: Array, weights: Array, axes: Sequence[int], against: Array) -> Array:
    """The mean, shrunk to 0; in nested plates of means that weigh as they are believed."""
    for axis, ratio in zip(_inside_out(axes), against, strict=True):
        total, columns = _weighted(columns, weights, axis)
        weights = total / (total + ratio)
    return weights * columns


def fit_against(columns: np.ndarray, mask: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """
    Against how many elements a mean is believed: the variance inside over that between.

    :param columns: of shape (simulations,) + plates + (size,); their mean is 0.
    :param mask: which elements count, of shape (simulations,) + plates.
    :param axes: as :func:`pooled` takes them.
    :return: of shape (axes, size), plates from the inside out.
    """
    order = _inside_out(axes)
    values, weights = columns.astype(np.float64), mask.astype(np.float64)[..., None]
    inside, found = _spread(values, weights, (order[0],)), []
    for axis, after in zip(order, [*order[1:], None], strict=True):
        total, values = _weighted(values, weights, axis)
        there = total > 0
        noise = inside * np.where(there, 1 / np.where(there, total, 1.0), 0.0)
        noise = _sums(noise) / np.maximum(_sums(there), 1)
        along = (after,) if after is not None else tuple(range(values.ndim - 1))
        between = _spread(values, there.astype(np.float64), along) - noise
        between = np.maximum(between, np.maximum(_LEAST * inside, 1e-12))
        found.append(inside / between)
        weights, inside = total / (total + found[-1]), between
    return np.stack(found).astype(columns.dtype)


def _inside_out(axes: Sequence[int]) -> list[int]:
    return sorted(axes, reverse=True)


def _weighted(values: Array, weights: Array, axis: int) -> tuple[Array, Array]:
    """Sum of the weights along an axis, and the weighted mean, 0 without any."""
    xp = array_namespace(values)
    total = xp.sum(weights, axis=axis, keepdims=True)
    safe = xp.where(total > 0, total, xp.ones_like(total))
    return total, xp.sum(weights * values, axis=axis, keepdims=True) / safe


def _spread(values: np.ndarray, there: np.ndarray, along: tuple[int, ...]) -> np.ndarray:
    """Variance along axes, on average over the others, of shape (size,)."""
    there = np.broadcast_to(there, values.shape)
    total = there.sum(along, keepdims=True)
    mean = (there * values).sum(along, keepdims=True) / np.maximum(total, 1)
    squares = _sums(there * (values - mean) ** 2)
    return squares / np.maximum(_sums(np.maximum(total - 1, 0)), 1)


def _sums(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, values.shape[-1]).sum(0)
