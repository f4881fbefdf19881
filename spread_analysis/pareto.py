# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Importance weights whose tail is smoothed, by ArviZ, under ArviZ 0.x and 1.x."""

from __future__ import annotations

import numpy as np

from spread_analysis.arviz_export import is_new
from spread_core.optional import import_extra


def smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """
    Pareto smoothed importance weights (Vehtari et al. 2024, arXiv:1507.02646).

    :param log_weights: of shape (num_samples,), up to a constant.
    :return: weights that sum to 1, and the shape k of the tail's Pareto distribution.
    :raises ImportError: if ArviZ is missing.
    """
    arviz = import_extra("arviz", "refine")
    if is_new(arviz):
        from arviz_stats.base import array_stats

        found, pareto_k = array_stats.psislw(np.asarray(log_weights, float))
    else:
        found, pareto_k = arviz.psislw(np.asarray(log_weights, float))
    weights = np.exp(np.asarray(found) - np.max(found))
    return weights / weights.sum(), float(pareto_k)
