# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Log-ratios by classification: always from logits, always with the prior odds taken off.

    >>> import jax.numpy as jnp
    >>> log_ratio(jnp.array([0.0]), pi=0.5)
    Array([0.], dtype=float32)
    >>> round(float(logistic_loss(jnp.zeros(3), jnp.zeros(5), pi=0.1)), 4)
    0.6931
"""

from spread_core.math.ratio import log_ratio, logistic_loss, prior_log_odds, weighted_mean

__all__ = ["log_ratio", "logistic_loss", "prior_log_odds", "weighted_mean"]
