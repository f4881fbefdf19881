# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Log-ratios by classification: always from logits, always with the prior odds taken off.

    >>> import torch
    >>> log_ratio(torch.tensor([0.0]), pi=0.5)
    tensor([0.])
    >>> round(float(logistic_loss(torch.zeros(3), torch.zeros(5), pi=0.1)), 4)
    0.6931
"""

from spread_core.math.ratio import log_ratio, logistic_loss, prior_log_odds, weighted_mean

__all__ = ["log_ratio", "logistic_loss", "prior_log_odds", "weighted_mean"]
