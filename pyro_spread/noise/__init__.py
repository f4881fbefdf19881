# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Spread-noise kernels k(y|x)."""

from pyro_spread.noise.base import SpreadNoise
from pyro_spread.noise.channel import ChannelNoise
from pyro_spread.noise.low_rank import LowRankGaussianNoise
from pyro_spread.noise.stationary import GaussianNoise, LaplaceNoise, LogisticNoise, StudentTNoise
from pyro_spread.noise.transformed import TransformedNoise

__all__ = [
    "ChannelNoise",
    "GaussianNoise",
    "LaplaceNoise",
    "LogisticNoise",
    "LowRankGaussianNoise",
    "SpreadNoise",
    "StudentTNoise",
    "TransformedNoise",
]
