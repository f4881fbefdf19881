# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The expected cost of estimating a Gaussian from finitely many draws."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import special

from spread_core.validation import as_count

#: Draws from which a Gaussian's own log density may be estimated: of fewer the regret is infinite,
#: or nearly so.
LEAST_DRAWS = 6


@lru_cache(maxsize=256, typed=True)  # 2.0 is refused after 2, too
def predictive_regret(num_draws: int) -> float:
    r"""
    Expected log-loss, per dimension, of predicting a Gaussian from the moments of its draws.

    With the mean :math:`m` and the unbiased variance :math:`s^2` of :math:`S` draws, a further draw
    has :math:`(z - m) / (c s) \sim t_\nu`, where :math:`\nu = S - 1` and
    :math:`c = \sqrt{1 + 1/S}`. That Student t is what one can predict without knowing the Gaussian
    itself, and it falls short of the Gaussian's own log density by

    .. math::

        E[\log N(z) - \log t(z \mid m, s)] = H(t_\nu) + \log c
        + \tfrac12 \left[\psi(\nu/2) - \log(\nu/2)\right] - \tfrac12 \log(2 \pi e)

    in nats, whatever the Gaussian: :math:`1/S` to first order. The adaptive contrast adds it back,
    so that moments of few draws do not bias the ELBO estimate.

    :param num_draws: the number :math:`S` of draws, at least 2.
    :return: the regret in nats per dimension, positive.
    :raises ValueError: if ``num_draws`` is not such an integer.

    >>> round(predictive_regret(128), 6)
    0.007833
    """
    draws = as_count(num_draws, "num_draws", 2)
    nu = draws - 1
    slope = special.digamma((nu + 1) / 2) - special.digamma(nu / 2)
    student_entropy = (nu + 1) / 2 * slope + math.log(nu) / 2 + special.betaln(nu / 2, 0.5)
    log_scale = (math.log1p(1 / draws) + special.digamma(nu / 2) - math.log(nu / 2)) / 2
    return float(student_entropy + log_scale - math.log(2 * np.pi * np.e) / 2)


@lru_cache(maxsize=256)
def plug_in_regret(num_draws: int, dim: int) -> float:
    r"""
    Expected log-loss of a Gaussian with the mean and covariance of finitely many draws.

    With the mean :math:`m` and the unbiased covariance :math:`C` of :math:`S` draws of a Gaussian
    :math:`N` in :math:`D` dimensions, a further draw has on average

    .. math::

        E[\log N(z) - \log N(z \mid m, C)] = \tfrac12 \sum_{i=1}^D
        \left[\psi\left(\tfrac{S-i}{2}\right) - \log \tfrac{S-1}{2}\right]
        + \tfrac D2 \left[\frac{(S+1)(S-1)}{S(S-D-2)} - 1\right]

    in nats, whatever the Gaussian: the determinant of a Wishart matrix and the mean of Hotelling's
    statistic (Anderson 2003, `An Introduction to Multivariate Statistical Analysis`, chapters 5
    and 7).

    :param num_draws: the number :math:`S` of draws, more than D + 2.
    :param dim: the number :math:`D` of dimensions.
    :return: the regret in nats, positive.

    >>> round(plug_in_regret(341, 8), 6)
    0.067428
    """
    over = num_draws - 1
    log_det = sum(special.digamma((num_draws - i) / 2) for i in range(1, dim + 1))
    log_det -= dim * math.log(over / 2)
    distance = (num_draws + 1) * over / (num_draws * (num_draws - dim - 2)) - 1
    return float(log_det + dim * distance) / 2


def default_moment_draws(num_data: int) -> int:
    """Draws of the guide per datum for the moments: many in all, and enough for each.

    :param num_data: data in the batch, counting those of every particle.
    """
    return min(max(4096 // max(1, num_data), 32), 1024)


def default_critic_draws(num_data: int) -> int:
    """Draws of the guide per datum for a critic's step, whose noise then is alike in all batches.

    :param num_data: data in the batch, counting those of every particle.
    """
    return max(1, 128 // max(1, num_data))
