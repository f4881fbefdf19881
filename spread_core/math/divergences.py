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
from dataclasses import dataclass, field

from array_api_compat import array_namespace

from spread_core.math._arrays import Array, cast, floating, softplus
from spread_core.math._exponentials import exp, expm1
from spread_core.math.f_divergence import Divergence
from spread_core.messages import samples

__all__ = [
    "KL",
    "ChiSquared",
    "Divergence",
    "JSPi",
    "Jeffreys",
    "LeastSquares",
    "ReverseChiSquared",
    "ReverseKL",
    "SquaredHellinger",
    "TotalVariation",
]


def _zeros(x: Array) -> Array:
    return array_namespace(x).zeros_like(x)


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
        return -exp(floating("log_ratio_q", log_ratio_q))


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
        return -expm1(-0.5 * log_ratio)

    def model_term(self, log_ratio: Array) -> Array:
        r""":math:`1 - e^{\ell/2}`."""
        return -expm1(0.5 * log_ratio)

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
        return expm1(log_ratio)

    def model_term(self, log_ratio: Array) -> Array:
        """0."""
        return _zeros(log_ratio)

    @property
    def reversed(self) -> Divergence:
        """``ReverseChiSquared()``."""
        return ReverseChiSquared()

    def generator_loss(self, log_ratio_q: Array) -> Array:
        r""":math:`1 - e^{2\ell}`, continued by its tangent above 40."""
        return -expm1(2.0 * floating("log_ratio_q", log_ratio_q))


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
        return expm1(-log_ratio)

    @property
    def reversed(self) -> Divergence:
        """``ChiSquared()``."""
        return ChiSquared()

    def generator_loss(self, log_ratio_q: Array) -> Array:
        r""":math:`2 e^{-\ell} - 2`."""
        return 2.0 * expm1(-floating("log_ratio_q", log_ratio_q))


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
        return -(floating("log_ratio_q", log_ratio_q) + expm1(log_ratio_q))


@dataclass(frozen=True)
class LeastSquares(Divergence):
    r"""
    :math:`KL[P\|M] - \frac18 \int (p-q)^2/(p+q)` with :math:`M = (P+Q)/2`, between 0 and
    :math:`\log 2 - 1/4`.

    It is what the least-squares loss of GANs follows in the labels 0, 1, 1 (Mao et al. 2017, "Least
    Squares Generative Adversarial Networks", equation 9) at the best critic, the sigmoid of
    :math:`\ell`: the generator's loss is half the squared distance of that from 1.
    :class:`LeastSquaresCritic` has the critic too. It seeks modes, nearly as
    :class:`ReverseKL` does.

        >>> import numpy as np
        >>> round(float(LeastSquares().estimate(np.array([80.0]), np.array([-80.0]))), 4)
        0.4431
    """

    upper = math.log(2) - 0.25

    def data_term(self, log_ratio: Array) -> Array:
        r""":math:`\log(P/M) - \frac18 \tanh(\ell/2)`."""
        xp = array_namespace(log_ratio)
        return math.log(2) - softplus(-log_ratio) - xp.tanh(log_ratio / 2) / 8

    def model_term(self, log_ratio: Array) -> Array:
        r""":math:`\frac18 \tanh(\ell/2)`."""
        return array_namespace(log_ratio).tanh(log_ratio / 2) / 8

    @property
    def reversed(self) -> Divergence:
        r""":math:`KL[Q\|M] - \frac18 \int (p-q)^2/(p+q)`, which has no name of its own."""
        return _ReversedLeastSquares()

    def generator_loss(self, log_ratio_q: Array) -> Array:
        r""":math:`\frac12 \sigma(-\ell)^2`."""
        log_ratio_q = floating("log_ratio_q", log_ratio_q)
        # The square of an exponential that cannot overflow, of either sign.
        return array_namespace(log_ratio_q).exp(-2.0 * softplus(log_ratio_q)) / 2


@dataclass(frozen=True)
class _ReversedLeastSquares(Divergence):
    """Of P from Q what :class:`LeastSquares` is of Q from P."""

    upper = LeastSquares.upper

    def data_term(self, log_ratio: Array) -> Array:
        r""":math:`-\frac18 \tanh(\ell/2)`."""
        return -LeastSquares().model_term(log_ratio)

    def model_term(self, log_ratio: Array) -> Array:
        r""":math:`\log(Q/M) + \frac18 \tanh(\ell/2)`."""
        return LeastSquares().data_term(-log_ratio)

    @property
    def reversed(self) -> Divergence:
        """``LeastSquares()``."""
        return LeastSquares()

    def generator_loss(self, log_ratio_q: Array) -> Array:
        r""":math:`\log(1 - \sigma) + \sigma + \frac12 \sigma^2` with :math:`\sigma(\ell)`."""
        log_ratio_q = floating("log_ratio_q", log_ratio_q)
        right = array_namespace(log_ratio_q).exp(-softplus(-log_ratio_q))
        return right + right**2 / 2 - softplus(log_ratio_q)


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
