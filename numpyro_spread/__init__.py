# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Train NumPyro models that have no likelihood and guides that have no density."""

try:
    import jax  # noqa: F401
    import numpyro  # noqa: F401
except ImportError as error:
    from spread_core.messages import general

    raise ImportError(general.missing_extra("numpyro_spread", "numpyro", error)) from error

from numpyro_spread import divergences as divergences
from numpyro_spread import infer, kernels, noise
from numpyro_spread.amortize import AmortizedPosterior, amortize
from numpyro_spread.autoguide import AutoAmortized, AutoImplicit
from numpyro_spread.checkpoint import load_checkpoint, save_checkpoint
from numpyro_spread.distributions import DeterministicGenerator, ImplicitDistribution, Simulator
from numpyro_spread.evaluation import (
    ais_log_likelihood,
    denoise,
    importance_weighted_bound,
    simulation_based_calibration,
)
from numpyro_spread.guard import finite_guard, guard_status
from numpyro_spread.handlers import spread
from numpyro_spread.infer import *
from numpyro_spread.kernels import *
from numpyro_spread.noise import *
from numpyro_spread.optim import averaged_params, two_player
from numpyro_spread.ratio import (
    R1,
    R2,
    GradientPenalty,
    concat_sites,
    critic_report,
)
from numpyro_spread.reporting import diagnose, report
from numpyro_spread.simulate import Simulations, simulate
from spread_analysis import (
    CalibrationWarning,
    FalseEvidenceWarning,
    GuardStatus,
    History,
    InvalidSimulationsWarning,
    MisspecificationWarning,
    NonFiniteError,
    SupportMismatchWarning,
)
from spread_core.checkpoint_file import Checkpoint, CheckpointError
from spread_core.math import divergences as _divergences
from spread_core.math.divergences import *

# What a module lists is public here too: a new loss, kernel or divergence needs no line.
__all__ = [
    "R1",
    "R2",
    "AmortizedPosterior",
    "AutoAmortized",
    "AutoImplicit",
    "CalibrationWarning",
    "Checkpoint",
    "CheckpointError",
    "DeterministicGenerator",
    "FalseEvidenceWarning",
    "GradientPenalty",
    "GuardStatus",
    "History",
    "ImplicitDistribution",
    "InvalidSimulationsWarning",
    "MisspecificationWarning",
    "NonFiniteError",
    "Simulations",
    "Simulator",
    "SupportMismatchWarning",
    "ais_log_likelihood",
    "amortize",
    "averaged_params",
    "concat_sites",
    "critic_report",
    "denoise",
    "diagnose",
    "finite_guard",
    "guard_status",
    "importance_weighted_bound",
    "load_checkpoint",
    "report",
    "save_checkpoint",
    "simulate",
    "simulation_based_calibration",
    "spread",
    "two_player",
]
__all__ += infer.__all__
__all__ += noise.__all__
__all__ += kernels.__all__
__all__ += _divergences.__all__
