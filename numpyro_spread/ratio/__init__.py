# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Log-ratios by classification: adapters, critics, penalties and diagnostics of a critic."""

from typing import Any

from numpyro_spread.ratio.adapters import ConcatSites, SiteValues, concat_sites, site_features
from numpyro_spread.ratio.diagnostics import critic_report
from numpyro_spread.ratio.losses import log_ratio, logistic_loss, prior_log_odds
from numpyro_spread.ratio.regularizers import R1, R2, GradientPenalty, Regularizer

_CRITICS = ("ConvCritic", "MLPCritic", "QuadraticCritic", "SeparableCritic")


def __getattr__(name: str) -> Any:
    # The ready critics are flax modules, and flax is an extra.
    if name in _CRITICS:
        from numpyro_spread.ratio import critics

        return getattr(critics, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
