# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The expected cost of estimating a Gaussian from finitely many draws."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import special

from spread_core.validation import as_count


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
