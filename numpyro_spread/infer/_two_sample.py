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

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from numpyro_spread.kernels import check_pair, squared_distances
from numpyro_spread.noise.base import is_concrete
from spread_core.messages import samples as sample_messages

_Kernel = Callable[[jax.Array, jax.Array], jax.Array]

# Entries of a kernel matrix held at once unless block_size says otherwise: 1,024 samples of each
# set still take the dense path, which computes every entry once instead of twice.
_MAX_ENTRIES = 2**20


def mmd2_unbiased(
    kernel: _Kernel,
    x: ArrayLike,
    y: ArrayLike,
    weights_x: ArrayLike | None = None,
    weights_y: ArrayLike | None = None,
    block_size: int | None = None,
) -> jax.Array:
    r"""
    Unbiased squared maximum mean discrepancy.

    .. math::

        \frac{\sum_{i \ne j} w_i w_j\, k(x_i, x_j)}{\sum_{i \ne j} w_i w_j}
        + \frac{\sum_{i \ne j} v_i v_j\, k(y_i, y_j)}{\sum_{i \ne j} v_i v_j}
        - 2 \frac{\sum_{ij} w_i v_j\, k(x_i, y_j)}{\sum_{ij} w_i v_j}

    (Gretton et al. 2012, `A kernel two-sample test`, lemma 6, here with weights). It is negative
    about half of the time when the distributions agree.

    Blocks of rows of large kernel matrices are computed one after the other, and again in the
    backward pass, so that never more than one block is held. Under ``jit`` the values of weights
    are not checked; the result is NaN if fewer than two are positive.

        >>> from numpyro_spread import GaussianKernel
        >>> x, y = jnp.array([[0.0], [0.0]]), jnp.array([[1.0], [1.0]])
        >>> round(float(mmd2_unbiased(GaussianKernel(1.0), x, y)), 4)
        0.7869

    :param kernel: function of (n, d) and (m, d) to the matrix (n, m).
    :param x: samples of shape (n, d), n at least 2.
    :param y: samples of shape (m, d), m at least 2.
    :param weights_x: nonnegative weights of shape (n,), two of them positive; None for equal ones.
    :param weights_y: the same for y, of shape (m,).
    :param block_size: number of rows of a block; None for one that fits, or all of a small matrix.
    :return: a scalar.
    :raises TypeError: if the samples are not arrays of one floating type.
    :raises ValueError: if there are fewer than two samples, or shapes or weights are wrong.
    """
    if block_size is not None and (type(block_size) is not int or block_size < 1):
        raise ValueError(sample_messages.bad_block_size(block_size))
    check_pair(x, y)
    x, wx = _weigh("x", x, weights_x)
    y, wy = _weigh("y", y, weights_y)
    sum_of = partial(_weighted_sum, kernel, block_size)
    within_x = sum_of(x, x, wx, wx, True) / _pair_weight(wx)
    within_y = sum_of(y, y, wy, wy, True) / _pair_weight(wy)
    between = sum_of(x, y, wx, wy, False) / (wx.sum() * wy.sum())
    return within_x + within_y - 2 * between


def energy_distance(
    x: ArrayLike,
    y: ArrayLike,
    weights_x: ArrayLike | None = None,
    weights_y: ArrayLike | None = None,
    beta: float = 1.0,
    block_size: int | None = None,
) -> jax.Array:
    r"""
    Unbiased energy distance :math:`2 E|x - y|^\beta - E|x - x'|^\beta - E|y - y'|^\beta`.

    The estimate is the U-statistic of Szekely and Rizzo 2013, `Energy statistics: a class of
    statistics based on distances`, that is :func:`mmd2_unbiased` with the kernel
    :math:`-|x - y|^\beta`, in units of x to the power beta.

        >>> float(energy_distance(jnp.zeros((2, 1)), jnp.ones((2, 1))))
        2.0

    :param x: samples of shape (n, d), n at least 2.
    :param y: samples of shape (m, d), m at least 2.
    :param weights_x: nonnegative weights of shape (n,), two of them positive; None for equal ones.
    :param weights_y: the same for y, of shape (m,).
    :param beta: power of the distance, between 0 and 2 exclusive.
    :param block_size: as in :func:`mmd2_unbiased`.
    :return: a scalar.
    :raises TypeError: if the samples are not arrays of one floating type.
    :raises ValueError: if beta is out of range, there are fewer than two samples, or shapes or
        weights are wrong.
    """
    if not 0 < beta < 2:
        raise ValueError(sample_messages.bad_energy_power(beta))
    kernel = partial(_negative_power, beta)
    return mmd2_unbiased(kernel, x, y, weights_x, weights_y, block_size)


def sliced_wasserstein(
    x: ArrayLike,
    y: ArrayLike,
    directions: ArrayLike,
    p: float = 2,
    weights_x: ArrayLike | None = None,
    weights_y: ArrayLike | None = None,
) -> jax.Array:
    r"""
    Mean over directions of the exact one-dimensional :math:`W_p^p`.

    .. math:: \frac1K \sum_{k=1}^K \int_0^1
        \left| F_{\theta_k^\top x}^{-1}(u) - F_{\theta_k^\top y}^{-1}(u) \right|^p du

    (Bonneel et al. 2015, `Sliced and Radon Wasserstein barycenters of measures`; no root is taken).
    It is biased upwards for few samples.

        >>> x, y = jnp.zeros((2, 1)), jnp.full((3, 1), 2.0)
        >>> float(sliced_wasserstein(x, y, jnp.ones((1, 1))))
        4.0

    :param x: samples of shape (n, d), n at least 2.
    :param y: samples of shape (m, d), m at least 2.
    :param directions: unit vectors, of shape (k, d); they are not normalised here.
    :param p: order of the distance, at least 1.
    :param weights_x: nonnegative weights of shape (n,), two of them positive; None for equal ones.
    :param weights_y: the same for y, of shape (m,).
    :return: a scalar, in units of x to the power p.
    :raises TypeError: if the samples are not arrays of one floating type.
    :raises ValueError: if p is below 1, there are fewer than two samples, or shapes or weights are
        wrong.
    """
    if not 1 <= p < float("inf"):
        raise ValueError(sample_messages.bad_order(p))
    check_pair(x, y)
    shape, width = jnp.shape(directions), jnp.shape(x)[1]
    if len(shape) != 2 or shape[0] == 0 or shape[1] != width:
        raise ValueError(sample_messages.bad_directions(shape, width))
    weighted = weights_x is not None or weights_y is not None
    x, wx = _weigh("x", x, weights_x)
    y, wy = _weigh("y", y, weights_y)
    directions = jnp.asarray(directions, x.dtype)
    # As many digits as the samples have, also where accelerators multiply in fewer by default.
    project = partial(jnp.matmul, directions, precision=lax.Precision.HIGHEST)
    projected_x, projected_y = project(x.T), project(y.T)
    if not weighted and len(x) == len(y):
        return _power(jnp.sort(projected_x) - jnp.sort(projected_y), p).mean()
    sorted_x, ends_x = _quantiles(projected_x, wx)
    sorted_y, ends_y = _quantiles(projected_y, wy)
    # Both quantile functions are constant between neighbours of the merged ends.
    ends = jnp.sort(jnp.concatenate([ends_x, ends_y], -1))
    widths = jnp.diff(ends, prepend=0)
    quantiles_x = jnp.take_along_axis(sorted_x, _step_of(ends_x, ends), -1)
    quantiles_y = jnp.take_along_axis(sorted_y, _step_of(ends_y, ends), -1)
    return (widths * _power(quantiles_x - quantiles_y, p)).sum(-1).mean()


def _weigh(name: str, samples: ArrayLike, weights: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """Samples without the values of those that do not count, and weights of at most one."""
    samples = jnp.asarray(samples)
    if len(samples) < 2:
        raise ValueError(sample_messages.too_few_samples(name, len(samples)))
    if weights is None:
        return samples, jnp.ones(len(samples), samples.dtype)
    if jnp.shape(weights) != samples.shape[:1]:
        shape = jnp.shape(weights)
        raise ValueError(sample_messages.weights_shape(f"weights_{name}", shape, len(samples)))
    if is_concrete(weights):
        # NumPy, not jax.numpy: inside a jit trace even constants become tracers there.
        known = np.asarray(weights, dtype=float)
        if not (np.all((known >= 0) & np.isfinite(known)) and np.sum(known > 0) > 1):
            raise ValueError(sample_messages.bad_weights(f"weights_{name}"))
    weights = jnp.asarray(weights, samples.dtype)
    # Zero times a kernel value that overflowed would be NaN, and an outlier would move the centre.
    counted = lax.stop_gradient(samples[weights.argmax()])
    return jnp.where((weights > 0)[:, None], samples, counted), weights / weights.max()


def _pair_weight(weights: jax.Array) -> jax.Array:
    """The sum of w_i w_j over i != j: a sum of positive terms, where (sum w)² - sum w² cancels."""
    return 2 * jnp.sum(weights[1:] * jnp.cumsum(weights)[:-1])


def _weighted_sum(
    kernel: _Kernel,
    block_size: int | None,
    a: jax.Array,
    b: jax.Array,
    weights_a: jax.Array,
    weights_b: jax.Array,
    off_diagonal: bool,
) -> jax.Array:
    """The sum of w_i v_j k(a_i, b_j), without i = j where ``off_diagonal``."""

    def rows(part: jax.Array, weights: jax.Array, indices: jax.Array) -> jax.Array:
        matrix = kernel(part, b)
        if off_diagonal:
            # Masked instead of subtracted: the diagonal may be far larger than all of the rest.
            matrix = jnp.where(indices[:, None] == jnp.arange(len(b)), 0, matrix)
        return jnp.sum(weights * (matrix * weights_b).sum(-1))

    size = max(1, _MAX_ENTRIES // len(b)) if block_size is None else block_size
    if size >= len(a):
        return rows(a, weights_a, jnp.arange(len(a)))
    count = -(-len(a) // size)
    padding = count * size - len(a)
    parts = jnp.pad(a, ((0, padding), (0, 0)), mode="edge").reshape(count, size, -1)
    weights = jnp.pad(weights_a, (0, padding)).reshape(count, size)
    indices = jnp.arange(count * size).reshape(count, size)
    # A scan does not merge the two computations of a block, so that nothing need prevent it.
    again = jax.checkpoint(rows, prevent_cse=False)
    return lax.map(lambda block: again(*block), (parts, weights, indices)).sum()


def _negative_power(beta: float, x: jax.Array, y: jax.Array) -> jax.Array:
    squared = squared_distances(x, y)
    # The inner where keeps the infinite slope of the root at 0 out of the gradient.
    apart = squared > 0
    return -jnp.where(apart, jnp.where(apart, squared, 1) ** (beta / 2), 0)


def _power(difference: jax.Array, p: float) -> jax.Array:
    return jnp.square(difference) if p == 2 else jnp.abs(difference) ** p


def _quantiles(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The steps of each row's quantile function, and where in [0, 1] they end."""
    order = jnp.argsort(values, -1)
    sums = jnp.cumsum(weights[order], -1)
    return jnp.take_along_axis(values, order, -1), sums / sums[:, -1:]


def _step_of(ends: jax.Array, levels: jax.Array) -> jax.Array:
    """Which step of a quantile function each level lies on, in every row."""
    # XLA may divide by a reciprocal, so that a last end of 1 - eps lies below the last level.
    return jnp.minimum(jax.vmap(jnp.searchsorted)(ends, levels), ends.shape[-1] - 1)
