# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Analysis of spread models with NumPy and SciPy: exact references, sample metrics, plots."""

from spread_analysis import reference
from spread_analysis.annealing import Target, annealed_importance
from spread_analysis.arviz_export import to_arviz
from spread_analysis.calibration import CalibrationReport, plot_sbc
from spread_analysis.classifier_test import c2st_prior, joint_c2st
from spread_analysis.coverage import CoverageReport, expected_coverage, plot_coverage, tarp
from spread_analysis.critic import CriticReport, EvidenceReport, critic_report
from spread_analysis.datasets import Dataset, load_dataset
from spread_analysis.evaluation import MeanAndError, SampleJudge, SampleQuality, mean_and_error
from spread_analysis.features import FeatureExtractor, fit_features
from spread_analysis.history import History
from spread_analysis.log_evidence import LogEvidence, log_mean_exp
from spread_analysis.metrics import (
    PrecisionRecall,
    c2st,
    frechet_distance,
    gaussian_frechet_distance,
    median_heuristic,
    mmd2,
    precision_recall,
    sliced_wasserstein,
)
from spread_analysis.misspecification import MisspecificationWarning, SimulatedRange
from spread_analysis.plots import (
    plot_calibration,
    plot_density_with_samples,
    plot_loss_curve,
    plot_reconstructions,
    plot_sample_grid,
)
from spread_analysis.posterior_check import CalibrationWarning, PosteriorCheck, check_posterior
from spread_analysis.reference import (
    cauchy_characteristic_function,
    gaussian_characteristic_function,
    laplace_characteristic_function,
    logistic_characteristic_function,
    match_columns,
    mean_relative_error,
    student_t_characteristic_function,
)
from spread_analysis.report import Report
from spread_analysis.simulations import Simulations
from spread_core.monitors import (
    FalseEvidenceMonitor,
    FalseEvidenceWarning,
    SupportMismatchMonitor,
    SupportMismatchWarning,
)
from spread_core.nonfinite import GuardStatus, InvalidSimulationsWarning, NonFiniteError

__all__ = [
    "CalibrationReport",
    "CalibrationWarning",
    "CoverageReport",
    "CriticReport",
    "Dataset",
    "EvidenceReport",
    "FalseEvidenceMonitor",
    "FalseEvidenceWarning",
    "FeatureExtractor",
    "GuardStatus",
    "History",
    "InvalidSimulationsWarning",
    "LogEvidence",
    "MeanAndError",
    "MisspecificationWarning",
    "NonFiniteError",
    "PosteriorCheck",
    "PrecisionRecall",
    "Report",
    "SampleJudge",
    "SampleQuality",
    "SimulatedRange",
    "Simulations",
    "SupportMismatchMonitor",
    "SupportMismatchWarning",
    "Target",
    "annealed_importance",
    "c2st",
    "c2st_prior",
    "cauchy_characteristic_function",
    "check_posterior",
    "critic_report",
    "expected_coverage",
    "fit_features",
    "frechet_distance",
    "gaussian_characteristic_function",
    "gaussian_frechet_distance",
    "joint_c2st",
    "laplace_characteristic_function",
    "load_dataset",
    "log_mean_exp",
    "logistic_characteristic_function",
    "match_columns",
    "mean_and_error",
    "mean_relative_error",
    "median_heuristic",
    "mmd2",
    "plot_calibration",
    "plot_coverage",
    "plot_density_with_samples",
    "plot_loss_curve",
    "plot_reconstructions",
    "plot_sample_grid",
    "plot_sbc",
    "precision_recall",
    "reference",
    "sliced_wasserstein",
    "student_t_characteristic_function",
    "tarp",
    "to_arviz",
]
