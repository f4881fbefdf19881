# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernels for class labels."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution

from pyro_spread.noise.base import SpreadNoise, as_parameter
from spread_core.messages import noise

# Columns summed in float32 miss 1 by rounding; singular values below this share of the largest
# cannot be distinguished from 0 in the single precision that most models run in.
_SUM_TOLERANCE = 1e-5
_SINGULAR_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class ChannelNoise(SpreadNoise):
    r"""
    Discrete spread noise: a channel :math:`P_{ij} = p(y=i \mid x=j)`.

    The spread of a distribution p over classes is P p, so an invertible P keeps the divergence zero
    only at equality [1, section 2.2]. ``spread`` is exact for ``Delta`` and ``Categorical``.

        >>> import torch, pyro.distributions as dist
        >>> noise = ChannelNoise.symmetric(4, flip=0.2)
        >>> noise.spread(dist.Categorical(torch.tensor([1.0, 0.0, 0.0, 0.0]))).probs
        tensor([0.8500, 0.0500, 0.0500, 0.0500])

    **References**

    [1] `Spread Divergence`, Zhang, Hayes, Bird, Habib, Barber, https://arxiv.org/abs/1811.08968

    :param matrix: tensor of shape (K, K) whose columns sum to 1.
    :raises ValueError: if the matrix is not square, not column-stochastic, or singular.
    """

    matrix: torch.Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", torch.as_tensor(as_parameter(self.matrix)))
        matrix = self.matrix.detach()
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 2:
            raise ValueError(noise.channel_shape(matrix.shape))
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError(noise.channel_not_stochastic("it contains NaN or inf"))
        if bool((matrix < 0).any()):
            raise ValueError(noise.channel_not_stochastic("it has a negative entry"))
        sums = matrix.sum(0)
        if bool(((sums - 1).abs() > _SUM_TOLERANCE).any()):
            raise ValueError(noise.channel_not_stochastic(f"its columns sum to {sums.tolist()}"))
        singular_values = torch.linalg.svdvals(matrix.double())
        if bool(singular_values[-1] <= _SINGULAR_TOLERANCE * singular_values[0]):
            raise ValueError(noise.channel_singular(f"{float(singular_values[-1]):.1e}"))

    @classmethod
    def symmetric(cls, num_classes: int, flip: float) -> ChannelNoise:
        r"""
        The channel :math:`(1-e) I + (e/K)\, 1 1^\top`: with probability e = ``flip`` the label is
        drawn afresh, uniformly over all K classes (its own included).

        :param num_classes: number of classes K, at least 2.
        :param flip: probability e of a fresh draw, in [0, 1).
        :raises ValueError: if num_classes < 2 or flip is outside [0, 1).
        """
        if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
            raise ValueError(noise.bad_num_classes(num_classes))
        if not 0 <= flip < 1:
            raise ValueError(noise.bad_flip(flip))
        uniform = torch.full((num_classes, num_classes), flip / num_classes)
        return cls(uniform + (1 - flip) * torch.eye(num_classes))

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.matrix.shape[0]

    def check_value(self, x: torch.Tensor) -> None:
        """
        Refuse values that are not class labels.

        :raises TypeError: if x is not of an integer type.
        :raises ValueError: if a label is outside 0..K-1.
        """
        if x.dtype.is_floating_point or x.dtype.is_complex or x.dtype is torch.bool:
            raise TypeError(noise.float_under_channel(x.dtype))
        if x.numel() and not torch.jit.is_tracing():
            low, high = int(x.min()), int(x.max())
            if low < 0 or high >= self.num_classes:
                raise ValueError(noise.label_out_of_range(self.num_classes, low, high))

    def _moves_with_data(self) -> bool:
        return True

    def _conditional(
        self, x: torch.Tensor, event_dim: int, validate_args: bool | None = None
    ) -> TorchDistribution:
        probs = self.matrix.to(x.device).T[x.long()]
        return dist.Categorical(probs, validate_args=validate_args).to_event(event_dim)

    def _spread_exactly(self, fn: Any, extra: int) -> TorchDistribution | None:
        if not isinstance(fn, torch.distributions.Categorical):
            return None
        if fn.probs.shape[-1] != self.num_classes:
            raise ValueError(noise.other_classes(self.num_classes, fn.probs.shape[-1]))
        return dist.Categorical(fn.probs @ self.matrix.T.to(fn.probs)).to_event(extra)
