# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Train Pyro models that have no likelihood and guides that have no density."""

try:
    import pyro  # noqa: F401
    import torch  # noqa: F401
except ImportError as error:
    from spread_analysis import _messages

    raise ImportError(_messages.missing_extra("pyro_spread", "pyro", error)) from error

from pyro_spread.distributions import DeterministicGenerator, ImplicitDistribution
from pyro_spread.handlers import spread
from pyro_spread.infer import SpreadELBO
from pyro_spread.noise import (
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
