# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel for class labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution

from pyro_spread.noise.base import SpreadNoise
from spread_core.noise.channel import Channel


@dataclass(frozen=True, eq=False)
class ChannelNoise(Channel, SpreadNoise):
    r"""
    Discrete spread noise: a channel :math:`P_{ij} = p(y=i \mid x=j)`.

        >>> import torch, pyro.distributions as dist
        >>> noise = ChannelNoise.symmetric(4, flip=0.2)
        >>> noise.spread(dist.Categorical(torch.tensor([1.0, 0.0, 0.0, 0.0]))).probs
        tensor([0.8500, 0.0500, 0.0500, 0.0500])
    """

    matrix: torch.Tensor

    def _conditional(
        self, x: torch.Tensor, event_dim: int, validate_args: bool | None = None
    ) -> TorchDistribution:
        probs = self.matrix.to(x.device).T[x.long()]
        return dist.Categorical(probs, validate_args=validate_args).to_event(event_dim)

    def _spread_exactly(self, fn: Any, extra: int) -> TorchDistribution | None:
        if not isinstance(fn, torch.distributions.Categorical):
            return None
        self._check_classes(fn.probs.shape[-1])
        return dist.Categorical(fn.probs @ self.matrix.T.to(fn.probs)).to_event(extra)
