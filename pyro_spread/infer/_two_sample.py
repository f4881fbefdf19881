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
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from pyro_spread.kernels import check_pair, squared_distances
from spread_core.messages import samples as sample_messages

_Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Entries of a kernel matrix held at once unless block_size says otherwise: 1,024 samples of each
# set still take the dense path, which computes every entry once instead of twice.
_MAX_ENTRIES = 2**20


def mmd2_unbiased(
    kernel: _Kernel,
    x: torch.Tensor,
    y: torch.Tensor,
    weights_x: torch.Tensor | None = None,
    weights_y: torch.Tensor | None = None,
    block_size: int | None = None,
) -> torch.Tensor:
    r"""
    Unbiased squared maximum mean discrepancy.

    .. math::

        \frac{\sum_{i \ne j} w_i w_j\, k(x_i, x_j)}{\sum_{i \ne j} w_i w_j}
        + \frac{\sum_{i \ne j} v_i v_j\, k(y_i, y_j)}{\sum_{i \ne j} v_i v_j}
        - 2 \frac{\sum_{ij} w_i v_j\, k(x_i, y_j)}{\sum_{ij} w_i v_j}

    (Gretton et al. 2012, `A kernel two-sample test`, lemma 6, here with weights). It is negative
    about half of the time when the distributions agree.

    Blocks of rows of large kernel matrices are computed one after the other, and again in the
    backward pass, so that never more than one block is held.

        >>> from pyro_spread import GaussianKernel
        >>> x, y = torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0]])
        >>> mmd2_unbiased(GaussianKernel(1.0), x, y)
        tensor(0.7869)

    :param kernel: function of (n, d) and (m, d) to the matrix (n, m).
    :param x: samples of shape (n, d), n at least 2.
    :param y: samples of shape (m, d), m at least 2.
    :param weights_x: nonnegative weights of shape (n,), two of them positive; None for equal ones.
    :param weights_y: the same for y, of shape (m,).
    :param block_size: number of rows of a block; None for one that fits, or all of a small matrix.
    :return: a scalar.
    :raises TypeError: if the samples are not tensors of one floating type.
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
    x: torch.Tensor,
    y: torch.Tensor,
    weights_x: torch.Tensor | None = None,
    weights_y: torch.Tensor | None = None,
    beta: float = 1.0,
    block_size: int | None = None,
) -> torch.Tensor:
    r"""
    Unbiased energy distance :math:`2 E|x - y|^\beta - E|x - x'|^\beta - E|y - y'|^\beta`.

    The estimate is the U-statistic of Szekely and Rizzo 2013, `Energy statistics: a class of
    statistics based on distances`, that is :func:`mmd2_unbiased` with the kernel
    :math:`-|x - y|^\beta`, in units of x to the power beta.

        >>> energy_distance(torch.zeros(2, 1), torch.ones(2, 1))
        tensor(2.)

    :param x: samples of shape (n, d), n at least 2.
    :param y: samples of shape (m, d), m at least 2.
    :param weights_x: nonnegative weights of shape (n,), two of them positive; None for equal ones.
    :param weights_y: the same for y, of shape (m,).
    :param beta: power of the distance, between 0 and 2 exclusive.
    :param block_size: as in :func:`mmd2_unbiased`.
    :return: a scalar.
    :raises TypeError: if the samples are not tensors of one floating type.
    :raises ValueError: if beta is out of range, there are fewer than two samples, or shapes or
        weights are wrong.
    """
    if not 0 < beta < 2:
        raise ValueError(sample_messages.bad_energy_power(beta))
    kernel = partial(_negative_power, beta)
    return mmd2_unbiased(kernel, x, y, weights_x, weights_y, block_size)


def sliced_wasserstein(
    x: torch.Tensor,
    y: torch.Tensor,
    directions: torch.Tensor,
    p: float = 2,
    weights_x: torch.Tensor | None = None,
    weights_y: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Mean over directions of the exact one-dimensional :math:`W_p^p`.

    .. math:: \frac1K \sum_{k=1}^K \int_0^1
        \left| F_{\theta_k^\top x}^{-1}(u) - F_{\theta_k^\top y}^{-1}(u) \right|^p du

    (Bonneel et al. 2015, `Sliced and Radon Wasserstein barycenters of measures`; no root is taken).
    It is biased upwards for few samples.

        >>> sliced_wasserstein(torch.zeros(2, 1), torch.full((3, 1), 2.0), torch.ones(1, 1))
        tensor(4.)

    :param x: samples of shape (n, d), n at least 2.
    :param y: samples of shape (m, d), m at least 2.
    :param directions: unit vectors, of shape (k, d); they are not normalised here.
    :param p: order of the distance, at least 1.
    :param weights_x: nonnegative weights of shape (n,), two of them positive; None for equal ones.
    :param weights_y: the same for y, of shape (m,).
    :return: a scalar, in units of x to the power p.
    :raises TypeError: if the samples are not tensors of one floating type.
    :raises ValueError: if p is below 1, there are fewer than two samples, or shapes or weights are
        wrong.
    """
    if not 1 <= p < float("inf"):
        raise ValueError(sample_messages.bad_order(p))
    check_pair(x, y)
    if directions.dim() != 2 or len(directions) == 0 or directions.shape[1] != x.shape[1]:
        raise ValueError(sample_messages.bad_directions(directions.shape, x.shape[1]))
    weighted = weights_x is not None or weights_y is not None
    x, wx = _weigh("x", x, weights_x)
    y, wy = _weigh("y", y, weights_y)
    directions = directions.to(x)
    projected_x, projected_y = directions @ x.T, directions @ y.T
    if not weighted and len(x) == len(y):
        return _power(projected_x.sort(-1).values - projected_y.sort(-1).values, p).mean()
    sorted_x, ends_x = _quantiles(projected_x, wx)
    sorted_y, ends_y = _quantiles(projected_y, wy)
    # Both quantile functions are constant between neighbours of the merged ends.
    ends = torch.cat([ends_x, ends_y], -1).sort(-1).values
    widths = torch.diff(ends, prepend=torch.zeros_like(ends[:, :1]))
    quantiles_x = sorted_x.gather(-1, _step_of(ends_x, ends))
    quantiles_y = sorted_y.gather(-1, _step_of(ends_y, ends))
    return (widths * _power(quantiles_x - quantiles_y, p)).sum(-1).mean()


def _weigh(
    name: str, samples: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples without the values of those that do not count, and weights of at most one."""
    if len(samples) < 2:
        raise ValueError(sample_messages.too_few_samples(name, len(samples)))
    if weights is None:
        return samples, samples.new_ones(len(samples))
    weights = torch.as_tensor(weights, dtype=samples.dtype, device=samples.device)
    if weights.shape != samples.shape[:1]:
        message = sample_messages.weights_shape(f"weights_{name}", weights.shape, len(samples))
        raise ValueError(message)
    if not torch.jit.is_tracing():
        valid = ((weights >= 0) & torch.isfinite(weights)).all() & ((weights > 0).sum() > 1)
        if not bool(valid):
            raise ValueError(sample_messages.bad_weights(f"weights_{name}"))
    # Zero times a kernel value that overflowed would be NaN, and an outlier would move the centre.
    counted = samples[weights.argmax()].detach()
    samples = torch.where((weights > 0)[:, None], samples, counted)
    return samples, weights / weights.max()


def _pair_weight(weights: torch.Tensor) -> torch.Tensor:
    """The sum of w_i w_j over i != j: a sum of positive terms, where (sum w)² - sum w² cancels."""
    return 2 * torch.dot(weights[1:], weights.cumsum(0)[:-1])


def _weighted_sum(
    kernel: _Kernel,
    block_size: int | None,
    a: torch.Tensor,
    b: torch.Tensor,
    weights_a: torch.Tensor,
    weights_b: torch.Tensor,
    off_diagonal: bool,
) -> torch.Tensor:
    """The sum of w_i v_j k(a_i, b_j), without i = j where ``off_diagonal``."""

    def rows(start: int, part: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        matrix = kernel(part, b)
        if off_diagonal:
            # Masked instead of subtracted: the diagonal may be far larger than all of the rest.
            columns = torch.arange(len(b), device=b.device)
            matrix = matrix.masked_fill(columns[start : start + len(part), None] == columns, 0)
        return torch.dot(weights, torch.mv(matrix, weights_b))

    size = max(1, _MAX_ENTRIES // len(b)) if block_size is None else block_size
    if size >= len(a):
        return rows(0, a, weights_a)
    total: Any = 0
    for start in range(0, len(a), size):
        part, weights = a[start : start + size], weights_a[start : start + size]
        total = total + checkpoint(
            rows, start, part, weights, use_reentrant=False, preserve_rng_state=False
        )
    return total


def _negative_power(beta: float, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    squared = squared_distances(x, y)
    # The inner where keeps the infinite slope of the root at 0 out of the gradient.
    apart = squared > 0
    return -torch.where(apart, torch.where(apart, squared, 1) ** (beta / 2), 0)


def _power(difference: torch.Tensor, p: float) -> torch.Tensor:
    return difference.square() if p == 2 else difference.abs() ** p


def _quantiles(values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The steps of each row's quantile function, and where in [0, 1] they end."""
    steps, order = values.sort(-1)
    sums = weights[order].cumsum(-1)
    return steps, sums / sums[:, -1:]


def _step_of(ends: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Which step of a quantile function each level lies on, in every row."""
    # A device that divides by a reciprocal may put the last end, 1 - eps, below the last level.
    steps = torch.searchsorted(ends.detach(), levels.detach())
    return steps.clamp(max=ends.shape[-1] - 1)
