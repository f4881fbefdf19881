# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What critics minimise that are no classifiers: hinge, least squares, pairs."""

from __future__ import annotations

from array_api_compat import array_namespace

from spread_core.math._arrays import Array, softplus
from spread_core.math.ratio import counted, weighted_mean


def hinge_loss(
    scores_p: Array,
    scores_q: Array,
    weights_p: Array | None = None,
    weights_q: Array | None = None,
) -> Array:
    r"""
    :math:`E_P \max(0, 1 - c) + E_Q \max(0, 1 + c)`.

    Its least value is 2 less twice the total variation, at the sign of p - q.

        >>> import numpy as np
        >>> float(hinge_loss(np.array([2.0]), np.array([-0.5])))
        0.5

    :param scores_p: of the critic at samples of the data.
    :param scores_q: at samples of the model.
    :param weights_p: weights of the data samples, of the shape of ``scores_p``.
    :param weights_q: weights of the model samples, of the shape of ``scores_q``.
    """
    xp = array_namespace(scores_p, scores_q)
    data, model = 1 - counted(scores_p, weights_p), 1 + counted(scores_q, weights_q)
    # Zero below zero, and not above zero what is left: NaN stays NaN.
    data, model = (xp.where(side < 0, 0.0, side) for side in (data, model))
    return weighted_mean(data, weights_p) + weighted_mean(model, weights_q)


def least_squares_loss(
    scores_p: Array,
    scores_q: Array,
    label_p: float = 1.0,
    label_q: float = 0.0,
    weights_p: Array | None = None,
    weights_q: Array | None = None,
) -> Array:
    r"""
    :math:`\frac12 E_P (c - b)^2 + \frac12 E_Q (c - a)^2`, with labels b of data and a of draws.

    Its least value is :math:`(b - a)^2 (2 - \Delta) / 8` with Le Cam's
    :math:`\Delta = \int (p-q)^2/(p+q)`, at :math:`(b p + a q)/(p + q)`.

        >>> import numpy as np
        >>> float(least_squares_loss(np.array([0.5]), np.array([0.5])))
        0.25

    :param scores_p: of the critic at samples of the data.
    :param scores_q: at samples of the model.
    :param label_p: of the data.
    :param label_q: of the draws.
    :param weights_p: weights of the data samples, of the shape of ``scores_p``.
    :param weights_q: weights of the model samples, of the shape of ``scores_q``.
    """
    data, model = counted(scores_p, weights_p) - label_p, counted(scores_q, weights_q) - label_q
    return (weighted_mean(data**2, weights_p) + weighted_mean(model**2, weights_q)) / 2


def pairing_loss(first: Array, second: Array, weights: Array | None = None) -> Array:
    r"""
    :math:`E[-\log \sigma(c(x) - c(y))]` in nats, for pairs of which x is said to be the first.

        >>> import numpy as np
        >>> round(float(pairing_loss(np.array([3.0]), np.array([3.0]))), 4)
        0.6931

    :param first: scores of the first of every pair.
    :param second: those of the second, of the same shape.
    :param weights: of the pairs, of the same shape.
    """
    return weighted_mean(softplus(counted(second, weights) - counted(first, weights)), weights)
