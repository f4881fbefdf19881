# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Distances between the samples of two sets, without a differences' array of n x m x d."""

from __future__ import annotations

from array_api_compat import array_namespace, is_torch_array

from spread_core.math._arrays import (
    Array,
    array_type,
    fold,
    is_array,
    is_floating,
    leading,
    product,
    stop_gradient,
)
from spread_core.messages import samples

# Up to here coordinates are subtracted one by one, which loses no digits at all; above, n x m x d
# differences would be too many to hold.
_DIRECT_DIMS = 8


def check_pair(x: Array, y: Array, *others: object) -> tuple[Array, Array]:
    """
    Refuse what are not two sets of samples of one space.

    :param x: samples of shape (n, d).
    :param y: samples of shape (m, d).
    :param others: what is computed with; arrays of JAX there make x and y arrays of JAX too.
    :return: both, as arrays of one library.
    :raises TypeError: if they are not arrays of one library and one floating type.
    :raises ValueError: if they are not matrices of the same width.
    """
    like = leading(x, y, *others)
    wanted = array_type(like)
    pair = []
    for name, value in (("x", x), ("y", y)):
        if not is_array(value, wanted):
            raise TypeError(samples.samples_type(name, type(value).__name__))
        xp = array_namespace(like)
        array = value if array_type(value) == wanted else xp.asarray(value)
        if not is_floating(xp, array.dtype):
            raise TypeError(samples.samples_type(name, array.dtype))
        if array.ndim != 2:
            raise ValueError(samples.samples_shape(name, array.shape))
        pair.append(array)
    x, y = pair
    if x.dtype != y.dtype:
        raise TypeError(samples.samples_types_differ(x.dtype, y.dtype))
    if x.shape[1] != y.shape[1]:
        raise ValueError(samples.samples_widths_differ(x.shape, y.shape))
    return x, y


def squared_distances(x: Array, y: Array) -> Array:
    """
    Squared Euclidean distances, never negative; their gradient at coincident points is zero.

    :param x: points of shape (n, d).
    :param y: points of shape (m, d).
    :return: matrix of shape (n, m).
    """
    xp = array_namespace(x, y)
    if x.shape[1] <= _DIRECT_DIMS:
        return xp.square(x[:, None] - y).sum(-1)
    # |x|² + |y|² - 2 x.y is one matrix product, but loses digits far from the origin, hence the
    # centre. Distances do not depend on it, so that it needs no gradient.
    centre = stop_gradient(y).mean(0)
    x, y = x - centre, y - centre
    norms = xp.square(x).sum(1)[:, None] + xp.square(y).sum(1)
    squared = norms + product(x, -2 * y.T)
    # Equal points come out as rounding errors of either sign. The difference is NaN where squares
    # are NaN or inf, which then stay: a failed simulation must not pass for a perfect one.
    rounding = 32 * xp.finfo(x.dtype).eps * norms
    return xp.where(squared - rounding <= 0, 0.0, squared)


def absolute_distances(x: Array, y: Array) -> Array:
    """
    Sums of absolute differences. Their gradient where coordinates coincide is zero.

    :param x: points of shape (n, d).
    :param y: points of shape (m, d).
    :return: matrix of shape (n, m).
    """
    xp = array_namespace(x, y)
    if is_torch_array(x):
        return xp.cdist(x, y, p=1.0)

    def add(total: Array, columns: tuple[Array, Array]) -> Array:
        one, other = columns
        return total + xp.abs(one[:, None] - other)

    return fold(add, xp.zeros((x.shape[0], y.shape[0]), dtype=x.dtype), (x.T, y.T))
