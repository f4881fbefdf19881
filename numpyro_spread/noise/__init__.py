# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Spread-noise kernels k(y|x)."""

from numpyro_spread.noise import moving, stationary
from numpyro_spread.noise.base import SpreadNoise
from numpyro_spread.noise.channel import ChannelNoise
from numpyro_spread.noise.learned_noise import LearnedNoise, learned
from numpyro_spread.noise.levels import MultiLevelNoise
from numpyro_spread.noise.low_rank import LowRankGaussianNoise
from numpyro_spread.noise.moving import *
from numpyro_spread.noise.stationary import *
from numpyro_spread.noise.transformed import TransformedNoise

__all__ = [
    "ChannelNoise",
    "LearnedNoise",
    "LowRankGaussianNoise",
    "MultiLevelNoise",
    "SpreadNoise",
    "TransformedNoise",
    "learned",
]
__all__ += stationary.__all__
__all__ += moving.__all__
