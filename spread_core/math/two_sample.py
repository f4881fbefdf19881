# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Discrepancies between two sets of samples: pure functions, differentiable in both sets.

``x`` has shape (n, d) and ``y`` (m, d), with optional nonnegative weights of shapes (n,) and (m,),
which need not sum to one. A sample of weight zero is left out, whatever its value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace

from spread_core.math._arrays import (
    Array,
    cast,
    indices,
    is_tracing,
    numbers,
    product,
    stop_gradient,
)
from spread_core.math.distances import check_pair, squared_distances
from spread_core.messages import samples as sample_messages

_Kernel = Callable[[Array, Array], Array]

# Entries of a kernel matrix held at once unless block_size says otherwise: 1,024 samples of each
# set still take the dense path, which computes every entry once instead of twice.
MAX_ENTRIES = 2**20


class SumOfBlocks(Protocol):
    """How a library computes blocks of rows one after the other, without keeping them."""

    def __call__(
        self, rows: Callable[..., Array], size: int, samples: Array, weights: Array
    ) -> Array:
        """
        The sum of ``rows(start, samples, weights)`` over blocks.

        :param rows: gives a scalar for a block; ``start`` is the index of its first row.
        :param size: number of rows of a block.
        :param samples: of shape (n, d).
        :param weights: of shape (n,).
        """


def sum_of_blocks(rows: Callable[..., Array], size: int, samples: Array, weights: Array) -> Array:
    """The sum where nothing is differentiated, as in NumPy: see :class:`SumOfBlocks`."""
    starts = range(0, samples.shape[0], size)
    parts = [rows(at, samples[at : at + size], weights[at : at + size]) for at in starts]
    return sum(parts[1:], parts[0])


def mmd2_unbiased(
    kernel: _Kernel,
    x: Array,
    y: Array,
    weights_x: Array | None = None,
    weights_y: Array | None = None,
    block_size: int | None = None,
    *,
    sum_of_blocks: SumOfBlocks = sum_of_blocks,
) -> Array:
    r"""
    Unbiased squared maximum mean discrepancy.

    .. math::

        \frac{\sum_{i \ne j} w_i w_j\, k(x_i, x_j)}{\sum_{i \ne j} w_i w_j}
        + \frac{\sum_{i \ne j} v_i v_j\, k(y_i, y_j)}{\sum_{i \ne j} v_i v_j}
        - 2 \frac{\sum_{ij} w_i v_j\, k(x_i, y_j)}{\sum_{ij} w_i v_j}

    (Gretton et al. 2012, `A kernel two-sample test`, lemma 6, here with weights). It is negative
    about half of the time when the distributions agree.

    Blocks of rows of large kernel matrices are computed one after the other, and again in the
    backward pass, so that never more than one block is held. Under ``jit`` of JAX the values of
    weights are not checked; the result is NaN if fewer than two are positive.

        >>> from spread_core.math.kernels import GaussianKernel
        >>> x, y = np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]])
        >>> round(float(mmd2_unbiased(GaussianKernel(1.0), x, y)), 4)
        0.7869

    :param kernel: function of (n, d) and (m, d) to the matrix (n, m).
    :param x: samples of shape (n, d), n at least 2.
    :param y: samples of shape (m, d), m at least 2.
    :param weights_x: nonnegative weights of shape (n,), two of them positive; None for equal ones.
    :param weights_y: the same for y, of shape (m,).
    :param block_size: number of rows of a block; None for one that fits, or all of a small matrix.
    :param sum_of_blocks: how the blocks of a large matrix are computed.
    :return: a scalar.
    :raises TypeError: if the samples are not arrays of one library and one floating type.
    :raises ValueError: if there are fewer than two samples, or shapes or weights are wrong.
    """
    if block_size is not None and (type(block_size) is not int or block_size < 1):
        raise ValueError(sample_messages.bad_block_size(block_size))
    x, y = check_pair(x, y, weights_x, weights_y)
    x, wx = _weigh("x", x, weights_x)
    y, wy = _weigh("y", y, weights_y)
    sum_of = partial(_weighted_sum, kernel, block_size, sum_of_blocks)
    within_x = sum_of(x, x, wx, wx, True) / _pair_weight(wx)
    within_y = sum_of(y, y, wy, wy, True) / _pair_weight(wy)
    between = sum_of(x, y, wx, wy, False) / (wx.sum() * wy.sum())
    return within_x + within_y - 2 * between


def energy_distance(
    x: Array,
    y: Array,
    weights_x: Array | None = None,
    weights_y: Array | None = None,
    beta: float = 1.0,
    block_size: int | None = None,
    *,
    sum_of_blocks: SumOfBlocks = sum_of_blocks,
) -> Array:
    r"""
    Unbiased energy distance :math:`2 E|x - y|^\beta - E|x - x'|^\beta - E|y - y'|^\beta`.

    The estimate is the U-statistic of Szekely and Rizzo 2013, `Energy statistics: a class of
    statistics based on distances`, that is :func:`mmd2_unbiased` with the kernel
    :math:`-|x - y|^\beta`, in units of x to the power beta.

        >>> float(energy_distance(np.zeros((2, 1)), np.ones((2, 1))))
        2.0

    :param x: samples of shape (n, d), n at least 2.
    :param y: samples of shape (m, d), m at least 2.
    :param weights_x: nonnegative weights of shape (n,), two of them positive; None for equal ones.
    :param weights_y: the same for y, of shape (m,).
    :param beta: power of the distance, between 0 and 2 exclusive.
    :param block_size: as in :func:`mmd2_unbiased`.
    :param sum_of_blocks: as in :func:`mmd2_unbiased`.
    :return: a scalar.
    :raises TypeError: if the samples are not arrays of one library and one floating type.
    :raises ValueError: if beta is out of range, there are fewer than two samples, or shapes or
        weights are wrong.
    """
    if not 0 < beta < 2:
        raise ValueError(sample_messages.bad_energy_power(beta))
    kernel = partial(_negative_power, beta)
    return mmd2_unbiased(
        kernel, x, y, weights_x, weights_y, block_size, sum_of_blocks=sum_of_blocks
    )


def sliced_wasserstein(
    x: Array,
    y: Array,
    directions: Array,
    p: float = 2,
    weights_x: Array | None = None,
    weights_y: Array | None = None,
) -> Array:
    r"""
    Mean over directions of the exact one-dimensional :math:`W_p^p`.

    .. math:: \frac1K \sum_{k=1}^K \int_0^1
        \left| F_{\theta_k^\top x}^{-1}(u) - F_{\theta_k^\top y}^{-1}(u) \right|^p du

    (Bonneel et al. 2015, `Sliced and Radon Wasserstein barycenters of measures`; no root is taken).
    It is biased upwards for few samples.

        >>> x, y = np.zeros((2, 1)), np.full((3, 1), 2.0)
        >>> float(sliced_wasserstein(x, y, np.ones((1, 1))))
        4.0

    :param x: samples of shape (n, d), n at least 2.
    :param y: samples of shape (m, d), m at least 2.
    :param directions: unit vectors, of shape (k, d); they are not normalised here.
    :param p: order of the distance, at least 1.
    :param weights_x: nonnegative weights of shape (n,), two of them positive; None for equal ones.
    :param weights_y: the same for y, of shape (m,).
    :return: a scalar, in units of x to the power p.
    :raises TypeError: if the samples are not arrays of one library and one floating type.
    :raises ValueError: if p is below 1, there are fewer than two samples, or shapes or weights are
        wrong.
    """
    if not 1 <= p < float("inf"):
        raise ValueError(sample_messages.bad_order(p))
    x, y = check_pair(x, y, directions, weights_x, weights_y)
    shape, width = np.shape(directions), x.shape[1]
    if len(shape) != 2 or shape[0] == 0 or shape[1] != width:
        raise ValueError(sample_messages.bad_directions(shape, width))
    weighted = weights_x is not None or weights_y is not None
    x, wx = _weigh("x", x, weights_x)
    y, wy = _weigh("y", y, weights_y)
    xp, directions = array_namespace(x), cast(directions, x)
    projected_x, projected_y = product(directions, x.T), product(directions, y.T)
    if not weighted and x.shape == y.shape:
        return _power(xp.sort(projected_x) - xp.sort(projected_y), p).mean()
    sorted_x, ends_x = _quantiles(projected_x, wx)
    sorted_y, ends_y = _quantiles(projected_y, wy)
    # Both quantile functions are constant between neighbours of the merged ends.
    ends = xp.concat([ends_x, ends_y], axis=-1)
    order = xp.argsort(ends, axis=-1)
    ends, from_x = xp.take_along_axis(ends, order, axis=-1), order < ends_x.shape[-1]
    widths = ends - xp.concat([xp.zeros_like(ends[:, :1]), ends[:, :-1]], axis=-1)
    quantiles_x, quantiles_y = _at(sorted_x, from_x), _at(sorted_y, ~from_x)
    return (widths * _power(quantiles_x - quantiles_y, p)).sum(-1).mean()


def _weigh(name: str, samples: Array, weights: Array | None) -> tuple[Array, Array]:
    """Samples without the values of those that do not count, and weights of at most one."""
    count = samples.shape[0]
    if count < 2:
        raise ValueError(sample_messages.too_few_samples(name, count))
    if weights is None:
        return samples, cast(np.ones(count), samples)
    if tuple(np.shape(weights)) != (count,):
        shape = np.shape(weights)
        raise ValueError(sample_messages.weights_shape(f"weights_{name}", shape, count))
    known = None if is_tracing(weights) else numbers(weights)
    if known is not None and not (
        np.all((known >= 0) & np.isfinite(known)) and np.sum(known > 0) > 1
    ):
        raise ValueError(sample_messages.bad_weights(f"weights_{name}"))
    weights = cast(weights, samples)
    # Zero times a kernel value that overflowed would be NaN, and an outlier would move the centre.
    xp = array_namespace(samples)
    counted = stop_gradient(xp.take(samples, xp.reshape(weights.argmax(), (1,)), axis=0))
    samples = xp.where((weights > 0)[:, None], samples, counted)
    return samples, weights / weights.max()


def _pair_weight(weights: Array) -> Array:
    """The sum of w_i w_j over i != j: a sum of positive terms, where (sum w)² - sum w² cancels."""
    sums = array_namespace(weights).cumulative_sum(weights)
    return 2 * (weights[1:] * sums[:-1]).sum()


def _weighted_sum(
    kernel: _Kernel,
    block_size: int | None,
    sum_of_blocks: SumOfBlocks,
    a: Array,
    b: Array,
    weights_a: Array,
    weights_b: Array,
    off_diagonal: bool,
) -> Array:
    """The sum of w_i v_j k(a_i, b_j), without i = j where ``off_diagonal``."""

    def rows(start: Any, part: Array, weights: Array) -> Array:
        matrix = kernel(part, b)
        if off_diagonal:
            # Masked instead of subtracted: the diagonal may be far larger than all of the rest.
            xp = array_namespace(matrix)
            row, column = (indices(len(of), matrix) for of in (part, b))
            matrix = xp.where((start + row)[:, None] == column, 0.0, matrix)
        return (weights * product(matrix, weights_b)).sum()

    size = max(1, MAX_ENTRIES // len(b)) if block_size is None else block_size
    return rows(0, a, weights_a) if size >= len(a) else sum_of_blocks(rows, size, a, weights_a)


def _negative_power(beta: float, x: Array, y: Array) -> Array:
    xp, squared = array_namespace(x), squared_distances(x, y)
    # The inner where keeps the infinite slope of the root at 0 out of the gradient. NaN is apart: a
    # failed simulation must not pass for a perfect one.
    apart = squared != 0
    return -xp.where(apart, xp.where(apart, squared, 1.0) ** (beta / 2), 0.0)


def _power(difference: Array, p: float) -> Array:
    xp = array_namespace(difference)
    return xp.square(difference) if p == 2 else xp.abs(difference) ** p


def _quantiles(values: Array, weights: Array) -> tuple[Array, Array]:
    """The steps of each row's quantile function, and where in [0, 1] they end."""
    xp = array_namespace(values)
    order = xp.argsort(values, axis=-1)
    sums = xp.cumulative_sum(weights[order], axis=-1)
    return xp.take_along_axis(values, order, axis=-1), sums / sums[:, -1:]


def _at(steps: Array, own: Array) -> Array:
    """
    What a quantile function is up to each of the merged ends: the step after its last own end.

    Of ends that are equal only the first has a width.
    """
    xp = array_namespace(steps)
    own = xp.astype(own, xp.int32)
    before = xp.cumulative_sum(own, axis=-1) - own
    # Rounding may put the last end of one function below that of the other.
    return xp.take_along_axis(steps, xp.clip(before, max=steps.shape[-1] - 1), axis=-1)
