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
from numpyro_spread.handlers import spread
from numpyro_spread.infer import SpreadELBO
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

__all__ = [
    "ChannelNoise",
    "DeterministicGenerator",
    "GaussianNoise",
    "ImplicitDistribution",
    "LaplaceNoise",
    "LogisticNoise",
    "LowRankGaussianNoise",
    "SpreadELBO",
    "SpreadNoise",
    "StudentTNoise",
    "TransformedNoise",
    "spread",
]
