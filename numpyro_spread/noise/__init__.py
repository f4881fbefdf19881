# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Spread-noise kernels k(y|x)."""

from numpyro_spread.noise.base import SpreadNoise
from numpyro_spread.noise.channel import ChannelNoise
from numpyro_spread.noise.low_rank import LowRankGaussianNoise
from numpyro_spread.noise.stationary import (
    GaussianNoise,
    LaplaceNoise,
    LogisticNoise,
    StudentTNoise,
)
from numpyro_spread.noise.transformed import TransformedNoise

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
