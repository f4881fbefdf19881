# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Comparison of mixing matrices, which are identified up to order and sign of their columns."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy.spatial.distance import cdist

from spread_core.validation import FloatArray, as_finite


def match_columns(estimate: ArrayLike, truth: ArrayLike) -> FloatArray:
    r"""Return ``estimate`` with its columns in the order and sign closest to ``truth``.

    Sources with a known, symmetric distribution (unit-variance Laplace) determine the mixing matrix
    up to a signed permutation of its columns. The one that minimises the summed squared error is
    found exactly, by linear assignment.

    :param estimate: Matrix of shape ``(dim, num_sources)``.
    :param truth: Matrix of the same shape.
    :return: Matrix of the same shape.
    :raises ValueError: If an argument is not a finite matrix or the shapes differ.

    >>> match_columns([[0.0, -1.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]])
    array([[1., 0.],
           [0., 2.]])
    """
    matrix, target = as_finite(estimate, "estimate"), as_finite(truth, "truth")
    if matrix.ndim != 2 or matrix.shape != target.shape:
        raise ValueError(
            "`estimate` and `truth` must be matrices of the same shape, "
            f"got {matrix.shape} and {target.shape}."
        )
    plus = cdist(target.T, matrix.T, "sqeuclidean")
    minus = cdist(target.T, -matrix.T, "sqeuclidean")
    rows, columns = optimize.linear_sum_assignment(np.minimum(plus, minus))
    signs = np.where(plus[rows, columns] <= minus[rows, columns], 1.0, -1.0)
    # Adding zero turns the -0.0 of a flipped column into 0.0.
    return matrix[:, columns] * signs + 0.0


def mean_relative_error(
    estimate: ArrayLike,
    truth: ArrayLike,
    aggregate: Literal["elements", "norm"] = "elements",
) -> float:
    r"""Relative error of a mixing matrix after matching order and sign of the columns.

    ``"elements"`` is the mean over entries of :math:`|\hat A_{ij} - A_{ij}| / |A_{ij}|`; entries of
    ``truth`` near zero dominate it. ``"norm"`` is :math:`\|\hat A - A\|_F / \|A\|_F`, which they
    do not.

    :param estimate: Matrix of shape ``(dim, num_sources)``.
    :param truth: Matrix of the same shape; with ``"elements"`` no entry may be zero.
    :param aggregate: ``"elements"`` or ``"norm"``.
    :raises ValueError: As :func:`match_columns`, and if ``truth`` has a zero that is divided by.

    >>> mean_relative_error([[1.0, -2.2], [1.0, -2.0]], [[2.0, 1.0], [2.0, 1.0]], "norm") < 0.1
    True
    """
    if aggregate not in ("elements", "norm"):
        raise ValueError(f"`aggregate` must be 'elements' or 'norm', got {aggregate!r}.")
    target = as_finite(truth, "truth")
    error = np.abs(match_columns(estimate, target) - target)
    if aggregate == "norm":
        norm = float(np.linalg.norm(target))
        if norm == 0:
            raise ValueError("`truth` must not be the zero matrix.")
        return float(np.linalg.norm(error)) / norm
    if (target == 0).any():
        raise ValueError("`truth` has zero entries; use aggregate='norm'.")
    return float(np.mean(error / np.abs(target)))
