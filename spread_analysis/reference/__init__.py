# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Closed-form references in float64, for tests, examples and anyone who wants the exact answer."""

from spread_analysis.reference.channel import (
    channel_js,
    channel_kl,
    channel_total_variation,
    symmetric_channel,
    symmetric_channel_deltas_kl,
)
from spread_analysis.reference.characteristic import (
    cauchy_characteristic_function,
    gaussian_characteristic_function,
    laplace_characteristic_function,
    logistic_characteristic_function,
    student_t_characteristic_function,
)
from spread_analysis.reference.deltas import (
    LogRatioMoments,
    student_t_deltas_kl,
    two_deltas_bhattacharyya,
    two_deltas_chi_squared,
    two_deltas_js,
    two_deltas_kl,
    two_deltas_log_ratio_moments,
    two_deltas_total_variation,
)
from spread_analysis.reference.gaussian import (
    AtomDivergences,
    gaussian_fisher_divergence,
    gaussian_kl,
    low_rank_spread_kl,
    mahalanobis_distance,
    spread_atoms_divergences,
    spread_gaussian_kl,
    spread_gaussian_kl_derivative,
    spread_l2_distance,
)
from spread_analysis.reference.ica import match_columns, mean_relative_error
from spread_analysis.reference.linear import (
    GaussianPosterior,
    delta_pca_one_sided_optimum,
    delta_pca_optimum,
    delta_pca_residual,
    expected_linear_elbo,
    linear_elbo,
    linear_marginal_log_prob,
    linear_posterior,
    perfect_reconstruction_log_likelihood,
)
from spread_analysis.reference.points import (
    DenoisedMoments,
    LocationVariance,
    gaussian_location_variance,
    point_model_optimum,
    tweedie_posterior,
    two_point_posterior,
)

__all__ = [
    "AtomDivergences",
    "DenoisedMoments",
    "GaussianPosterior",
    "LocationVariance",
    "LogRatioMoments",
    "cauchy_characteristic_function",
    "channel_js",
    "channel_kl",
    "channel_total_variation",
    "delta_pca_one_sided_optimum",
    "delta_pca_optimum",
    "delta_pca_residual",
    "expected_linear_elbo",
    "gaussian_characteristic_function",
    "gaussian_fisher_divergence",
    "gaussian_kl",
    "gaussian_location_variance",
    "laplace_characteristic_function",
    "linear_elbo",
    "linear_marginal_log_prob",
    "linear_posterior",
    "logistic_characteristic_function",
    "low_rank_spread_kl",
    "mahalanobis_distance",
    "match_columns",
    "mean_relative_error",
    "perfect_reconstruction_log_likelihood",
    "point_model_optimum",
    "spread_atoms_divergences",
    "spread_gaussian_kl",
    "spread_gaussian_kl_derivative",
    "spread_l2_distance",
    "student_t_characteristic_function",
    "student_t_deltas_kl",
    "symmetric_channel",
    "symmetric_channel_deltas_kl",
    "tweedie_posterior",
    "two_deltas_bhattacharyya",
    "two_deltas_chi_squared",
    "two_deltas_js",
    "two_deltas_kl",
    "two_deltas_log_ratio_moments",
    "two_deltas_total_variation",
    "two_point_posterior",
]
