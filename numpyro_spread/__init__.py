# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Train NumPyro models that have no likelihood and guides that have no density."""

try:
    import jax  # noqa: F401
    import numpyro  # noqa: F401
except ImportError as error:
    from spread_analysis import _messages

    raise ImportError(_messages.missing_extra("numpyro_spread", "numpyro", error)) from error

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
from numpyro_spread.handlers import spread
from numpyro_spread.infer import (
    MMD,
    AdversarialDivergence,
    EnergyDistance,
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
from numpyro_spread.optim import two_player
from numpyro_spread.ratio import (
    R1,
    GradientPenalty,
    concat_sites,
    critic_report,
)
from spread_analysis import SupportMismatchWarning

__all__ = [
    "KL",
    "MMD",
    "R1",
    "AdversarialDivergence",
    "ChannelNoise",
    "ChiSquared",
    "DeterministicGenerator",
    "Divergence",
    "EnergyDistance",
    "GaussianKernel",
    "GaussianNoise",
    "GradientPenalty",
    "ImplicitDistribution",
    "JSPi",
    "Jeffreys",
    "LaplaceKernel",
    "LaplaceNoise",
    "LogisticNoise",
    "LowRankGaussianNoise",
    "RationalQuadraticKernel",
    "ReverseChiSquared",
    "ReverseKL",
    "SlicedWasserstein",
    "SpreadELBO",
    "SpreadNoise",
    "SquaredHellinger",
    "StudentTNoise",
    "SupportMismatchWarning",
    "TotalVariation",
    "TransformedNoise",
    "WassersteinCritic",
    "concat_sites",
    "critic_report",
    "spread",
    "two_player",
]
