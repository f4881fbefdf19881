# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Log-ratios by classification: always from logits, always with the prior odds taken off."""

from __future__ import annotations

import math

from array_api_compat import array_namespace

from spread_core.math._arrays import Array, floating, leading, softplus
from spread_core.messages import players


def prior_log_odds(pi: float) -> float:
    r"""
    :math:`\log \pi / (1 - \pi)`, what a critic's logit holds beyond the log-ratio.

    :param pi: share of data among the critic's samples.
    :raises ValueError: if pi is not inside (0, 1).
    """
    if not 0.0 < pi < 1.0:
        raise ValueError(players.bad_pi(pi))
    return math.log(pi) - math.log1p(-pi)


def log_ratio(logits: Array, pi: float = 0.5) -> Array:
    r"""
    :math:`\log P/Q` in nats, from the logits of a critic that was trained with class prior ``pi``.

    The optimal logit is :math:`\log(P/Q) + \log \pi/(1 - \pi)` [1, equation 7 for pi = 1/2].

        >>> log_ratio(0.0, pi=0.5)
        0.0

    **References**

    [1] `How (not) to train your generative model`, Ferenc Huszar, https://arxiv.org/abs/1511.05101

    :param logits: of any shape.
    :param pi: share of data among the critic's samples.
    :raises ValueError: if pi is not inside (0, 1).
    """
    return logits - prior_log_odds(pi)


def weighted_mean(values: Array, weights: Array | None = None) -> Array:
    """
    Mean of all elements, weighted if ``weights`` are given; elements of weight zero do not count.

    :param values: of any shape.
    :param weights: of the same shape, not negative.
    """
    if weights is None:
        return values.mean()
    # Not only multiplied: a masked element may be NaN or inf.
    return (counted(values, weights) * (weights / weights.sum())).sum()


def logistic_loss(
    logits_p: Array,
    logits_q: Array,
    pi: float = 0.5,
    weights_p: Array | None = None,
    weights_q: Array | None = None,
    label_smoothing: float = 0.0,
) -> Array:
    r"""
    :math:`\pi E_P[-\log D] + (1 - \pi) E_Q[-\log(1 - D)]` in nats, with :math:`D` the sigmoid.

    Its minimum over all critics is :math:`H(\pi) - \mathrm{JS}_\pi`. Each side is averaged by
    itself, so that unequal numbers of data and model samples still stand for the stated ``pi``.

        >>> import numpy as np
        >>> round(float(logistic_loss(np.zeros(3), np.zeros(5), pi=0.1)), 4)
        0.6931

    :param logits_p: logits at samples of the data.
    :param logits_q: logits at samples of the model; their number may differ.
    :param pi: share of data among the critic's samples.
    :param weights_p: weights of the data samples, of the shape of ``logits_p``.
    :param weights_q: weights of the model samples, of the shape of ``logits_q``.
    :param label_smoothing: the data's label is 1 minus this (one-sided smoothing, Salimans et al.
        2016, https://arxiv.org/abs/1606.03498, section 3.4). It bounds the logits and thereby
        biases the log-ratio.
    :raises ValueError: if pi is not inside (0, 1) or label_smoothing not in [0, 1).
    """
    prior_log_odds(pi)
    if not 0 <= label_smoothing < 1:
        raise ValueError(players.bad_range("label_smoothing", label_smoothing, "in [0, 1)"))
    logits_p, logits_q = counted(logits_p, weights_p), counted(logits_q, weights_q)
    data = softplus(-logits_p)
    if label_smoothing:
        data = (1 - label_smoothing) * data + label_smoothing * softplus(logits_p)
    return pi * weighted_mean(data, weights_p) + (1 - pi) * weighted_mean(
        softplus(logits_q), weights_q
    )


def non_saturating_loss(logits: Array) -> Array:
    r"""
    The non-saturating loss of GANs for every sample, :math:`-\log D = \log(1 + e^{-\text{logit}})`.

    Its gradient is not that of :math:`JS_\pi` but of
    :math:`KL[Q\|P] - JS_\pi[P\|Q]/(1-\pi)`: mode seeking, whatever pi (Arjovsky and Bottou 2017,
    "Towards principled methods", theorem 2.5, for pi = 1/2). ``JSPi(pi).generator_loss`` is the
    loss that follows :math:`JS_\pi`.

        >>> import numpy as np
        >>> non_saturating_loss(np.array([-80.0]))
        array([80.])

    :param logits: the critic's logits (prior odds included, unlike in log-ratios) at samples of Q.
    :return: an array of the same shape, in nats.
    :raises TypeError: if logits are not a floating-point array.
    """
    return softplus(-floating("logits", logits))


def counted(values: Array, weights: Array | None) -> Array:
    """Values without those of weight zero, where NaN would come back as a gradient of NaN."""
    if weights is None:
        return values
    return array_namespace(leading(values, weights)).where(weights > 0, values, 0.0)
