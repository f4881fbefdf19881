# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A critic's logits at the samples that it compares."""

from __future__ import annotations

from typing import NamedTuple

from array_api_compat import array_namespace

from spread_core.math._arrays import Array
from spread_core.math.ratio import weighted_mean


class Logits(NamedTuple):
    """
    A critic's logits at samples of P and of Q, and the weight of each sample.

    P is the side with the data, whose label is one: the data themselves, the guide's draws, or the
    guide's pairs. Q is what it is compared with: the model's draws, the contrast's, or the model's
    pairs.

    :param p: logits at samples of P, of any shape.
    :param q: logits at samples of Q.
    :param weights_p: weights of the samples of P, of the shape of ``p``, or None.
    :param weights_q: weights of the samples of Q, or None.
    """

    p: Array
    q: Array
    weights_p: Array | None = None
    weights_q: Array | None = None

    @property
    def data(self) -> Array:
        """Another name of ``p``."""
        return self.p

    @property
    def model(self) -> Array:
        """Another name of ``q``."""
        return self.q

    @property
    def data_weights(self) -> Array | None:
        """Another name of ``weights_p``."""
        return self.weights_p

    @property
    def model_weights(self) -> Array | None:
        """Another name of ``weights_q``."""
        return self.weights_q

    def range(self) -> tuple[Array, Array]:
        """The least and the largest logit of both sides, as scalar arrays."""
        xp = array_namespace(self.p, self.q)
        low = xp.minimum(xp.min(self.p), xp.min(self.q))
        return low, xp.maximum(xp.max(self.p), xp.max(self.q))

    def accuracy(self) -> Array:
        """How often the critic is right, both sides counting alike; a scalar array."""
        xp = array_namespace(self.p, self.q)
        right_p = weighted_mean(xp.astype(self.p > 0, self.p.dtype), self.weights_p)
        right_q = weighted_mean(xp.astype(self.q < 0, self.q.dtype), self.weights_q)
        return (right_p + right_q) / 2
