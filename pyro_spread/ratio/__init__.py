# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Log-ratios by classification: adapters, critics, penalties and diagnostics of a critic."""

from pyro_spread.ratio.adapters import ConcatSites, SiteValues, concat_sites, site_features
from pyro_spread.ratio.critics import ConvCritic, MLPCritic, QuadraticCritic, SeparableCritic
from pyro_spread.ratio.diagnostics import critic_report
from pyro_spread.ratio.losses import log_ratio, logistic_loss, prior_log_odds
from pyro_spread.ratio.regularizers import R1, R2, GradientPenalty, Regularizer

__all__ = [
    "R1",
    "R2",
    "ConcatSites",
    "ConvCritic",
    "GradientPenalty",
    "MLPCritic",
    "QuadraticCritic",
    "Regularizer",
    "SeparableCritic",
    "SiteValues",
    "concat_sites",
    "critic_report",
    "log_ratio",
    "logistic_loss",
    "prior_log_odds",
    "site_features",
]
