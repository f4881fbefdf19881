# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Divergences of the data P from the model Q, as pure functions of the log-ratio log(P/Q).

Every class is an f-divergence :math:`E_Q[f(P/Q)]` in nats (or, for powers of the ratio, without a
unit), and works on log-ratios of any shape, element by element: tensors of PyTorch, arrays of JAX
(or of NumPy beside them), or arrays of NumPy alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from array_api_compat import array_namespace

from spread_core.math._arrays import (
    Array,
    array_type,
    cast,
    floating,
    is_array,
    leading,
    softplus,
)
from spread_core.messages import contrasts, samples

# exp(80) leaves room in float32 (whose largest number is near exp(88)) for the linear part below.
_EXP_LIMIT = 80.0


def _exp(x: Array) -> Array:
    """
    exp(x), continued by its tangent above 80.

    There exp would soon overflow, and one such sample would turn a whole gradient into inf or NaN.
    The tangent keeps value and slope continuous, so that the sample still pulls.
    """
    xp = array_namespace(x)
    large = x > _EXP_LIMIT
    return xp.exp(xp.where(large, _EXP_LIMIT, x)) * xp.where(large, 1.0 + (x - _EXP_LIMIT), 1.0)


def _expm1(x: Array) -> Array:
    """exp(x) - 1 with the digits of expm1 near 0 and the tangent of :func:`_exp` above 80."""
    # Away from 0 nothing cancels in exp(x) - 1, whose slope is exact, while the slope of expm1 is
    # taken from 1 + expm1(x): nothing is left of it at x = -20.
    xp = array_namespace(x)
    near = abs(x) < 1.0
    return xp.where(near, xp.expm1(xp.where(near, x, 0.0)), _exp(x) - 1.0)


def _zeros(x: Array) -> Array:
    return array_namespace(x).zeros_like(x)


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

    A divergence of one's own takes six lines. This is that of Vincze and Le Cam,
    :math:`\int (p-q)^2/(p+q)`, in whatever library the log-ratios are arrays of:

        >>> import numpy as np
        >>> from array_api_compat import array_namespace
        >>> class LeCam(Divergence):
        ...     upper = 2.0
        ...     def data_term(self, log_ratio):
        ...         return array_namespace(log_ratio).tanh(log_ratio / 2)
        ...     def model_term(self, log_ratio): return -self.data_term(log_ratio)
        ...     def generator_loss(self, log_ratio): return -((1 + self.data_term(log_ratio)) ** 2)
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


@dataclass(frozen=True)
class KL(Divergence):
    r"""
    :math:`KL[P\|Q] = E_P[\log(P/Q)]`, of data from model: mass covering.

    The generator's loss :math:`-e^\ell` has a high variance, since few samples of Q fall where P/Q
    is large; ``JSPi(pi, normalised=True)`` with a small pi is tamer.

        >>> import numpy as np
        >>> float(KL().estimate(np.array([1.0, 3.0]), np.array([-1.0])))
        2.0
    """

    def data_term(self, log_ratio: Array) -> Array:
        r""":math:`\ell`."""
        return log_ratio

    def model_term(self, log_ratio: Array) -> Array:
        """0."""
        return _zeros(log_ratio)

    @property
    def reversed(self) -> Divergence:
        """``ReverseKL()``."""
        return ReverseKL()

    def generator_loss(self, log_ratio_q: Array) -> Array:
        r""":math:`-e^\ell`, continued by its tangent above 80."""
        return -_exp(floating("log_ratio_q", log_ratio_q))


@dataclass(frozen=True)
class ReverseKL(Divergence):
    r"""
    :math:`KL[Q\|P] = -E_Q[\log(P/Q)]`, of model from data: mode seeking.

        >>> import numpy as np
        >>> ReverseKL().generator_loss(np.array([2.0]))
        array([-2.])
    """

    def data_term(self, log_ratio: Array) -> Array:
        """0."""
        return _zeros(log_ratio)

    def model_term(self, log_ratio: Array) -> Array:
        r""":math:`-\ell`."""
        return -log_ratio

    @property
    def reversed(self) -> Divergence:
        """``KL()``."""
        return KL()

    def generator_loss(self, log_ratio_q: Array) -> Array:
        r""":math:`-\ell`."""
        return -floating("log_ratio_q", log_ratio_q)


@dataclass(frozen=True)
class JSPi(Divergence):
    r"""
    Generalised Jensen-Shannon divergence,
    :math:`\pi KL[P\|M] + (1-\pi) KL[Q\|M]` with :math:`M = \pi P + (1-\pi) Q`.

    It lies between 0 and the entropy :math:`H(\pi)`, which disjoint distributions reach, and is
    :math:`H(\pi)` minus the least loss of a classifier that sees data with probability pi (Huszár
    2015, "How (not) to train your generative model"). Divided by :math:`\pi(1-\pi)` it goes from
    :math:`KL[P\|Q]` at pi -> 0 (mass covering) to :math:`KL[Q\|P]` at pi -> 1 (mode seeking).

        >>> import numpy as np
        >>> disjoint = JSPi(0.5).estimate(np.array([80.0]), np.array([-80.0]))
        >>> round(float(disjoint), 4), round(JSPi(0.5).upper, 4)
        (0.6931, 0.6931)

    :param pi: fraction of data, strictly between 0 and 1; also the critic's class prior.
    :param normalised: divide by pi (1 - pi).
    :raises TypeError: if pi is not a plain Python number.
    :raises ValueError: if pi does not lie strictly between 0 and 1.
    """

    pi: float = field()  # no default: a bare annotation would inherit that of the base
    normalised: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.pi, bool) or not isinstance(self.pi, (int, float)):
            raise TypeError(samples.prior_type(type(self.pi).__name__))
        if not 0.0 < self.pi < 1.0:
            raise ValueError(samples.bad_prior(self.pi))
        data, model = self._factors
        entropy = -data * math.log(self.pi) - model * math.log1p(-self.pi)
        object.__setattr__(self, "upper", entropy)

    @property
    def _factors(self) -> tuple[float, float]:
        if self.normalised:
            return 1.0 / (1.0 - self.pi), 1.0 / self.pi
        return self.pi, 1.0 - self.pi

    def data_term(self, log_ratio: Array) -> Array:
        r""":math:`\pi \log(P/M)`."""
        # log(P/M) as a sum of two exponentials, not as the difference of two large logarithms.
        xp, other = array_namespace(log_ratio), math.log1p(-self.pi) - log_ratio
        return -self._factors[0] * xp.logaddexp(xp.full_like(other, math.log(self.pi)), other)

    def model_term(self, log_ratio: Array) -> Array:
        r""":math:`(1-\pi) \log(Q/M)`."""
        xp, other = array_namespace(log_ratio), math.log(self.pi) + log_ratio
        return -self._factors[1] * xp.logaddexp(xp.full_like(other, math.log1p(-self.pi)), other)

    @property
    def reversed(self) -> Divergence:
        """``JSPi(1.0 - pi, normalised)``."""
        return JSPi(1.0 - self.pi, self.normalised)

    def generator_loss(self, log_ratio_q: Array) -> Array:
        r""":math:`(1-\pi) \log(Q/M)`: with pi = 1/2 the saturating loss of GANs."""
        return self.model_term(floating("log_ratio_q", log_ratio_q))


@dataclass(frozen=True)
class SquaredHellinger(Divergence):
    r"""
    :math:`\int (\sqrt p - \sqrt q)^2`, between 0 and 2, without the half that some authors put.

        >>> import numpy as np
        >>> float(SquaredHellinger().estimate(np.array([80.0]), np.array([-80.0])))
        2.0
    """

    upper = 2.0

    def data_term(self, log_ratio: Array) -> Array:
        r""":math:`1 - e^{-\ell/2}`."""
        return -_expm1(-0.5 * log_ratio)

    def model_term(self, log_ratio: Array) -> Array:
        r""":math:`1 - e^{\ell/2}`."""
        return -_expm1(0.5 * log_ratio)

    @property
    def reversed(self) -> Divergence:
        """It is symmetric."""
        return self

    def generator_loss(self, log_ratio_q: Array) -> Array:
        r""":math:`1 - e^{\ell/2}`."""
        return self.model_term(floating("log_ratio_q", log_ratio_q))


@dataclass(frozen=True)
class ChiSquared(Divergence):
    r"""
    Pearson's :math:`\chi^2`, :math:`\int (p-q)^2/q = E_P[P/Q] - 1`: mass covering, more than KL.

        >>> import numpy as np
        >>> float(ChiSquared().estimate(np.array([0.0]), np.array([0.0])))
        0.0
    """

    def data_term(self, log_ratio: Array) -> Array:
        r""":math:`e^\ell - 1`."""
        return _expm1(log_ratio)

    def model_term(self, log_ratio: Array) -> Array:
        """0."""
        return _zeros(log_ratio)

    @property
    def reversed(self) -> Divergence:
        """``ReverseChiSquared()``."""
        return ReverseChiSquared()

    def generator_loss(self, log_ratio_q: Array) -> Array:
        r""":math:`1 - e^{2\ell}`, continued by its tangent above 40."""
        return -_expm1(2.0 * floating("log_ratio_q", log_ratio_q))


@dataclass(frozen=True)
class ReverseChiSquared(Divergence):
    r"""
    Neyman's :math:`\chi^2`, :math:`\int (p-q)^2/p = E_Q[Q/P] - 1`: mode seeking, more than
    :class:`ReverseKL`.

        >>> import numpy as np
        >>> float(ReverseChiSquared().estimate(np.array([0.0]), np.array([0.0])))
        0.0
    """

    def data_term(self, log_ratio: Array) -> Array:
        """0."""
        return _zeros(log_ratio)

    def model_term(self, log_ratio: Array) -> Array:
        r""":math:`e^{-\ell} - 1`."""
        return _expm1(-log_ratio)

    @property
    def reversed(self) -> Divergence:
        """``ChiSquared()``."""
        return ChiSquared()

    def generator_loss(self, log_ratio_q: Array) -> Array:
        r""":math:`2 e^{-\ell} - 2`."""
        return 2.0 * _expm1(-floating("log_ratio_q", log_ratio_q))


@dataclass(frozen=True)
class Jeffreys(Divergence):
    r"""
    :math:`KL[P\|Q] + KL[Q\|P]`.

        >>> import numpy as np
        >>> float(Jeffreys().estimate(np.array([1.0]), np.array([-2.0])))
        3.0
    """

    def data_term(self, log_ratio: Array) -> Array:
        r""":math:`\ell`."""
        return log_ratio

    def model_term(self, log_ratio: Array) -> Array:
        r""":math:`-\ell`."""
        return -log_ratio

    @property
    def reversed(self) -> Divergence:
        """It is symmetric."""
        return self

    def generator_loss(self, log_ratio_q: Array) -> Array:
        r""":math:`1 - \ell - e^\ell`, continued by its tangent above 80."""
        return -(floating("log_ratio_q", log_ratio_q) + _expm1(log_ratio_q))


@dataclass(frozen=True)
class TotalVariation(Divergence):
    r"""
    :math:`\frac12\int |p-q| = P(\ell > 0) - Q(\ell > 0)`, between 0 and 1, for estimation only.

    Its expectation is a lower bound for every critic that did not see the samples: twice the
    balanced accuracy of the critic, minus 1.

        >>> import numpy as np
        >>> float(TotalVariation().estimate(np.array([1.0, 2.0]), np.array([-1.0, 3.0])))
        0.5
    """

    upper = 1.0

    def data_term(self, log_ratio: Array) -> Array:
        r""":math:`\text{sign}(\ell)/2`."""
        xp = array_namespace(log_ratio)
        sign = cast(log_ratio > 0, log_ratio) - cast(log_ratio < 0, log_ratio)
        # NaN as 0 would pass a broken critic off as a useless one.
        return 0.5 * xp.where(xp.isnan(log_ratio), log_ratio, sign)

    def model_term(self, log_ratio: Array) -> Array:
        r""":math:`-\text{sign}(\ell)/2`."""
        return -self.data_term(log_ratio)

    def generator_loss(self, log_ratio_q: Array) -> Array:
        """
        Refused: a step function of the log-ratio gives a generator nothing to follow.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError(samples.no_generator_loss())


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
