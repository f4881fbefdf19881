# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Spread divergences of discrete distributions through a channel, in nats."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from spread_core.validation import FloatArray, as_count, as_finite, as_probability, as_weights


def symmetric_channel(num_classes: int, flip: float) -> FloatArray:
    r"""Matrix :math:`(1 - e) I + (e / n) \mathbf{1} \mathbf{1}^\top` of the symmetric channel.

    Entry ``[i, j]`` is the probability of symbol ``i`` after the noise given ``j`` before it. With
    probability ``flip`` the symbol is replaced by a uniform draw, which may be itself.

    :param num_classes: Number :math:`n` of symbols, at least 2.
    :param flip: Probability :math:`e` of a uniform draw, in [0, 1). At 1 the matrix is singular.
    :raises ValueError: If an argument is out of range.

    >>> symmetric_channel(2, 0.2)
    array([[0.9, 0.1],
           [0.1, 0.9]])
    """
    size = as_count(num_classes, "num_classes", 2)
    if not 0.0 <= flip < 1.0:
        raise ValueError(
            f"`flip` must lie in [0, 1), got {flip}; at 1 the channel forgets its input."
        )
    return (1.0 - flip) * np.eye(size) + flip / size


def _through(p: ArrayLike, q: ArrayLike, matrix: ArrayLike) -> tuple[FloatArray, FloatArray]:
    channel = as_finite(matrix, "matrix")
    if channel.ndim != 2 or channel.shape[0] != channel.shape[1]:
        raise ValueError(f"`matrix` must be square, got shape {channel.shape}.")
    if (channel < 0).any() or not np.allclose(channel.sum(0), 1.0, rtol=0, atol=1e-9):
        raise ValueError("`matrix` must be column-stochastic: every column sums to one.")
    size = channel.shape[0]
    return channel @ as_weights(p, size, "p"), channel @ as_weights(q, size, "q")


def channel_kl(p: ArrayLike, q: ArrayLike, matrix: ArrayLike) -> float:
    r"""KL divergence of :math:`P p` from :math:`P q`, in nats.

    :param p: Probabilities of the data, shape ``(num_classes,)``.
    :param q: Probabilities of the model, shape ``(num_classes,)``.
    :param matrix: Column-stochastic matrix of shape ``(num_classes, num_classes)``.
    :raises ValueError: If ``matrix`` is not column-stochastic or ``p`` or ``q`` no distribution.

    >>> round(channel_kl([1.0, 0.0], [0.0, 1.0], symmetric_channel(2, 0.2)), 7)
    1.7577797
    """
    spread_p, spread_q = _through(p, q, matrix)
    return float(special.rel_entr(spread_p, spread_q).sum())


def channel_js(p: ArrayLike, q: ArrayLike, matrix: ArrayLike, pi: float = 0.5) -> float:
    r"""Jensen-Shannon divergence :math:`JS_\pi` of :math:`P p` and :math:`P q`, in nats.

    :param p: Probabilities of the data, shape ``(num_classes,)``.
    :param q: Probabilities of the model, shape ``(num_classes,)``.
    :param matrix: Column-stochastic matrix of shape ``(num_classes, num_classes)``.
    :param pi: Weight of ``p``, strictly between 0 and 1.
    :raises ValueError: As :func:`channel_kl`, and if ``pi`` is out of range.

    >>> round(channel_js([1.0, 0.0], [0.0, 1.0], np.eye(2)), 6)
    0.693147
    """
    weight = as_probability(pi, "pi")
    spread_p, spread_q = _through(p, q, matrix)
    middle = weight * spread_p + (1 - weight) * spread_q
    from_p = weight * special.rel_entr(spread_p, middle).sum()
    return float(from_p + (1 - weight) * special.rel_entr(spread_q, middle).sum())


def channel_total_variation(p: ArrayLike, q: ArrayLike, matrix: ArrayLike) -> float:
    r"""Total variation distance of :math:`P p` and :math:`P q`, in [0, 1].

    Through the symmetric channel it is exactly :math:`(1 - e)` times the clean distance.

    :param p: Probabilities of the data, shape ``(num_classes,)``.
    :param q: Probabilities of the model, shape ``(num_classes,)``.
    :param matrix: Column-stochastic matrix of shape ``(num_classes, num_classes)``.
    :raises ValueError: As :func:`channel_kl`.

    >>> round(channel_total_variation([1.0, 0.0], [0.0, 1.0], symmetric_channel(2, 0.3)), 6)
    0.7
    """
    spread_p, spread_q = _through(p, q, matrix)
    return float(0.5 * np.abs(spread_p - spread_q).sum())


def symmetric_channel_deltas_kl(num_classes: int, flip: float) -> float:
    r"""Spread KL of two different symbols: :math:`(1 - e) \ln(1 + n (1 - e) / e)`, in nats.

    :param num_classes: Number :math:`n` of symbols, at least 2.
    :param flip: Probability :math:`e` of a uniform draw, in (0, 1).
    :raises ValueError: If an argument is out of range.

    >>> round(symmetric_channel_deltas_kl(5, 0.3), 7)
    1.7772817
    """
    size, rate = as_count(num_classes, "num_classes", 2), as_probability(flip, "flip")
    return float((1 - rate) * np.log1p(size * (1 - rate) / rate))
