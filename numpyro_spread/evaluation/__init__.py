# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation that trusts no critic: log p(x) by importance weights, calibration by simulation."""

from numpyro_spread.evaluation.calibration import simulation_based_calibration
from numpyro_spread.evaluation.denoising import denoise
from numpyro_spread.evaluation.log_evidence import ais_log_likelihood, importance_weighted_bound

__all__ = [
    "ais_log_likelihood",
    "denoise",
    "importance_weighted_bound",
    "simulation_based_calibration",
]
