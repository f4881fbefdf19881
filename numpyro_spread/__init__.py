# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Train NumPyro models that have no likelihood and guides that have no density."""

try:
    import jax  # noqa: F401
    import numpyro  # noqa: F401
except ImportError as error:
    from spread_core.messages import general

    raise ImportError(general.missing_extra("numpyro_spread", "numpyro", error)) from error

from numpyro_spread.autoguide import AutoImplicit
from numpyro_spread.checkpoint import load_checkpoint, save_checkpoint
from numpyro_spread.distributions import DeterministicGenerator, ImplicitDistribution
from numpyro_spread.divergences import (
    KL,
    ChiSquared,
    Divergence,
    Jeffreys,
    JSPi,
    ReverseChiSquared,
    ReverseKL,
    SquaredHellinger,
    TotalVariation,
)
from numpyro_spread.evaluation import (
    ais_log_likelihood,
    importance_weighted_bound,
    simulation_based_calibration,
)
from numpyro_spread.guard import finite_guard, guard_status
from numpyro_spread.handlers import spread
from numpyro_spread.infer import (
    MMD,
    AdversarialDivergence,
    EnergyDistance,
    JointContrastELBO,
    PriorContrastELBO,
    SemiImplicitELBO,
    SlicedWasserstein,
    SpreadELBO,
    WassersteinCritic,
)
from numpyro_spread.kernels import GaussianKernel, LaplaceKernel, RationalQuadraticKernel
from numpyro_spread.noise import (
    ChannelNoise,
    GaussianNoise,
    LaplaceNoise,
    LogisticNoise,
    LowRankGaussianNoise,
    SpreadNoise,
    StudentTNoise,
    TransformedNoise,
)
from numpyro_spread.optim import averaged_params, two_player
from numpyro_spread.ratio import (
    R1,
    GradientPenalty,
    concat_sites,
    critic_report,
)
from numpyro_spread.reporting import diagnose, report
from spread_analysis import (
    FalseEvidenceWarning,
    GuardStatus,
    History,
    InvalidSimulationsWarning,
    NonFiniteError,
    SupportMismatchWarning,
)
from spread_core.checkpoint_file import Checkpoint, CheckpointError

__all__ = [
    "KL",
    "MMD",
    "R1",
    "AdversarialDivergence",
    "AutoImplicit",
    "ChannelNoise",
    "Checkpoint",
    "CheckpointError",
    "ChiSquared",
    "DeterministicGenerator",
    "Divergence",
    "EnergyDistance",
    "FalseEvidenceWarning",
    "GaussianKernel",
    "GaussianNoise",
    "GradientPenalty",
    "GuardStatus",
    "History",
    "ImplicitDistribution",
    "InvalidSimulationsWarning",
    "JSPi",
    "Jeffreys",
    "JointContrastELBO",
    "LaplaceKernel",
    "LaplaceNoise",
    "LogisticNoise",
    "LowRankGaussianNoise",
    "NonFiniteError",
    "PriorContrastELBO",
    "RationalQuadraticKernel",
    "ReverseChiSquared",
    "ReverseKL",
    "SemiImplicitELBO",
    "SlicedWasserstein",
    "SpreadELBO",
    "SpreadNoise",
    "SquaredHellinger",
    "StudentTNoise",
    "SupportMismatchWarning",
    "TotalVariation",
    "TransformedNoise",
    "WassersteinCritic",
    "ais_log_likelihood",
    "averaged_params",
    "concat_sites",
    "critic_report",
    "diagnose",
    "finite_guard",
    "guard_status",
    "importance_weighted_bound",
    "load_checkpoint",
    "report",
    "save_checkpoint",
    "simulation_based_calibration",
    "spread",
    "two_player",
]
