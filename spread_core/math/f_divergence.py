# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Base class of the divergences, and what they cost from log-ratios at samples of both sides."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from array_api_compat import array_namespace

from spread_core.math._arrays import Array, array_type, cast, floating, is_array, leading
from spread_core.messages import contrasts, samples


class Divergence(ABC):
    r"""
    A divergence of the data P from the model Q, computed from log-ratios.

    Subclasses state three functions of :math:`\ell = \log(P/Q)`, each element by element:

    - ``data_term`` and ``model_term``, with which the divergence is
      :math:`E_P[\text{data term}(\ell)] + E_Q[\text{model term}(\ell)]`;
    - ``generator_loss`` on samples of Q, :math:`-f^*(f'(e^\ell))` up to a constant. Its gradient in
      the sample, with the function :math:`\ell` held fixed, is that of the divergence (Nowozin et
      al. 2016, "f-GAN", equation 4 at the optimal critic);

    and, where they differ from the defaults, ``pi``, the fraction of data among the samples that
    the critic classifies, and ``upper``, the divergence between disjoint distributions.

    A divergence of your own takes a few lines. This is that of Vincze and Le Cam,
    :math:`\int (p-q)^2/(p+q)`, in whatever library the log-ratios are arrays of:

        >>> import numpy as np
        >>> from array_api_compat import array_namespace
        >>> class LeCam(Divergence):
        ...     upper = 2.0
        ...     def data_term(self, log_ratio):
        ...         return array_namespace(log_ratio).tanh(log_ratio / 2)
        ...     def model_term(self, log_ratio): return -self.data_term(log_ratio)
        ...     def generator_loss(self, log_ratio):  # not 1 + tanh, which loses its digits below 0
        ...         return -((2 / (1 + array_namespace(log_ratio).exp(-log_ratio))) ** 2)
        >>> float(LeCam().estimate(np.array([80.0, 80.0]), np.array([-80.0, -80.0])))
        2.0
    """

    pi: float = 0.5
    upper: float = math.inf

    @abstractmethod
    def data_term(self, log_ratio: Array) -> Array:
        """What is averaged over the data: log_ratio at samples of P -> the same shape."""

    @abstractmethod
    def model_term(self, log_ratio: Array) -> Array:
        """What is averaged over the model: log_ratio at samples of Q -> the same shape."""

    @abstractmethod
    def generator_loss(self, log_ratio_q: Array) -> Array:
        """
        Loss of the generator for every sample, whose gradient is that of the divergence.

        :param log_ratio_q: log(P/Q) at samples of Q from a critic that is held fixed, any shape.
        :return: an array of the same shape; its value means nothing by itself.
        :raises TypeError: if log_ratio_q is not a floating-point array.
        """

    @property
    def reversed(self) -> Divergence:
        """
        The divergence with its arguments exchanged: ``reversed`` of P from Q is this of Q from P.

        :raises NotImplementedError: if the class does not say.
        """
        raise NotImplementedError(contrasts.not_reversible(type(self).__name__))

    def estimate(
        self,
        log_ratio_p: Array,
        log_ratio_q: Array,
        weights_p: Array | None = None,
        weights_q: Array | None = None,
    ) -> Array:
        """
        The divergence, from log-ratios at samples of both sides.

        With a learned log-ratio this is an estimate, not a bound, save for
        :class:`TotalVariation`.

        :param log_ratio_p: log(P/Q) at samples of P, of any shape.
        :param log_ratio_q: log(P/Q) at samples of Q, of any shape.
        :param weights_p: weights of the samples of P, not negative, that broadcast to the shape of
            log_ratio_p; a mask will do. They are scaled to sum to one. Weight 0 leaves a sample out
            even where its log-ratio is inf or NaN; a side of nothing but zeros adds 0.
        :param weights_q: the same for samples of Q.
        :return: a scalar.
        :raises TypeError: if log-ratios are not floating-point arrays of one library, or weights
            not arrays of it.
        :raises ValueError: if weights do not broadcast to the shape of their log-ratios.
        """
        like = leading(log_ratio_p, log_ratio_q, weights_p, weights_q)
        log_ratio_p, share_p = _shares("p", log_ratio_p, weights_p, like)
        log_ratio_q, share_q = _shares("q", log_ratio_q, weights_q, like)
        # Shares first: a sum of finite terms near the largest number would overflow.
        data = (self.data_term(log_ratio_p) * share_p).sum()
        return data + (self.model_term(log_ratio_q) * share_q).sum()


def _shares(
    side: str, log_ratio: Array, weights: Array | None, like: object
) -> tuple[Array, Array | float]:
    """Log-ratios with those of weight 0 made harmless, and the share of each in the mean."""
    log_ratio = floating(f"log_ratio_{side}", log_ratio, like)
    if weights is None:
        return log_ratio, 1.0 / max(math.prod(log_ratio.shape), 1)
    wanted = array_type(log_ratio)
    if not is_array(weights, wanted):
        raise TypeError(samples.weights_type(f"weights_{side}", wanted, type(weights).__name__))
    xp = array_namespace(log_ratio)
    try:
        full = xp.broadcast_to(cast(weights, log_ratio), log_ratio.shape)
    except (ValueError, RuntimeError):
        raise ValueError(
            samples.weights_misfit(side, tuple(weights.shape), tuple(log_ratio.shape))
        ) from None
    unused = full == 0
    # Before the terms and not after: 0 times the slope at inf would still be NaN.
    safe = xp.where(unused, 0.0, log_ratio)
    total = full.sum()
    return safe, full / xp.where(total == 0, 1.0, total)
