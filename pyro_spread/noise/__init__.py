# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Spread-noise kernels k(y|x)."""

from pyro_spread.noise import moving, stationary
from pyro_spread.noise.base import SpreadNoise
from pyro_spread.noise.channel import ChannelNoise
from pyro_spread.noise.learned_noise import LearnedNoise, learned
from pyro_spread.noise.levels import MultiLevelNoise
from pyro_spread.noise.low_rank import LowRankGaussianNoise
from pyro_spread.noise.moving import *
from pyro_spread.noise.stationary import *
from pyro_spread.noise.transformed import TransformedNoise

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
