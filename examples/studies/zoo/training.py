# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Training code that all systems share, and bounds that are sums over labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from studies.comparison import learning_rate_factor
from studies.gan_study import batches

__all__ = ["batches", "learning_rate_factor", "mixture_bound"]


def mixture_bound(
    log_likelihoods: npt.ArrayLike, label_shares: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    r"""
    For a model conditional on the label, :math:`\log p(x) = \log \sum_y p(y) p(x \mid y)`, in nats.

    With lower bounds of :math:`\log p(x \mid y)` in their place it is a lower bound, since the sum
    grows with each of them. This makes models with and without label comparable.

        >>> mixture_bound([[-1.0, -2.0]], [1.0, 0.0])
        array([-1.])

    :param log_likelihoods: log p(x | y) or bounds of it, shape (N, number of labels), nats.
    :param label_shares: p(y), shape (number of labels,).
    :return: shape (N,).
    """
    with np.errstate(divide="ignore"):
        log_shares = np.log(np.asarray(label_shares, np.float64))
    return np.asarray(np.logaddexp.reduce(np.asarray(log_likelihoods) + log_shares, axis=-1))
