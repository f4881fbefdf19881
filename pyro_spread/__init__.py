# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Train Pyro models that have no likelihood and guides that have no density."""

try:
    import pyro  # noqa: F401
    import torch  # noqa: F401
except ImportError as error:
    from spread_core.messages import general

    raise ImportError(general.missing_extra("pyro_spread", "pyro", error)) from error

from pyro_spread import divergences as divergences
from pyro_spread import infer, kernels, noise
from pyro_spread.amortize import AmortizedPosterior, amortize
from pyro_spread.autoguide import AutoAmortized, AutoImplicit
from pyro_spread.checkpoint import load_checkpoint, save_checkpoint
from pyro_spread.compile import compiled
from pyro_spread.distributions import DeterministicGenerator, ImplicitDistribution, Simulator
from pyro_spread.evaluation import (
    ais_log_likelihood,
    denoise,
    importance_weighted_bound,
    simulation_based_calibration,
)
from pyro_spread.guard import finite_guard, guard_status
from pyro_spread.handlers import spread
from pyro_spread.infer import *
from pyro_spread.kernels import *
from pyro_spread.noise import *
from pyro_spread.optim import averaged_params, two_player
from pyro_spread.ratio import (
    R1,
    R2,
    GradientPenalty,
    concat_sites,
    critic_report,
)
from pyro_spread.reporting import diagnose, report
from pyro_spread.simulate import Simulations, simulate
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
    "compiled",
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
