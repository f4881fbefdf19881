# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Gaussian noise kernel with a few correlated directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.distributions.transforms import ReshapeTransform

from pyro_spread.noise.base import SpreadNoise, as_parameter, is_positive, like
from spread_core.messages import noise


class _LowRankNormal(dist.LowRankMultivariateNormal):
    """
    The stock distribution with a Mahalanobis term that does not cancel.

    Woodbury's identity subtracts two numbers that grow as 1/s²: in float32 784 pixels with s = 0.01
    are off by nats. The same number is the minimum over w of a sum of squares, the (v - F w)² / D
    of the isotropic part and the w² of the factor.
    """

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        factor, variance = self._unbroadcasted_cov_factor, self._unbroadcasted_cov_diag
        tril = self._capacitance_tril
        difference = (value - self.loc).unsqueeze(-1)
        w = torch.cholesky_solve(factor.mT @ (difference / variance.unsqueeze(-1)), tril)
        rest = (difference - factor @ w).squeeze(-1)
        mahalanobis = (rest**2 / variance).sum(-1) + (w**2).sum((-2, -1))
        log_det = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + variance.log().sum(-1)
        size = self.loc.shape[-1]
        return -0.5 * (size * math.log(2 * math.pi) + log_det + mahalanobis)


@dataclass(frozen=True, eq=False)
class LowRankGaussianNoise(SpreadNoise):
    r"""
    Gaussian spread noise with covariance :math:`s^2 I + F F^\top`, F of shape D x R.

    Densities use the matrix determinant lemma and the Woodbury identity, so that the cost is
    :math:`O(D R^2)` and no D x D matrix is ever formed. An event of several dimensions (an image)
    is flattened to its D elements.

        >>> import torch
        >>> noise = LowRankGaussianNoise(0.1, torch.ones(4, 1))
        >>> noise(torch.zeros(3, 4), event_dim=1).event_shape
        torch.Size([4])

    The exact spread KL never gains from a factor that is learned without a constraint: its optimum
    is F = 0. Learning it needs a constraint (trace, determinant or Lipschitz) and the entropy term.

    :param scale: isotropic standard deviation s: a number, or a tensor of shape () or (D,).
    :param factor: tensor of shape (D, R), in units of x.
    :raises ValueError: if scale is not positive and finite or factor is not a finite matrix.
    """

    scale: float | torch.Tensor
    factor: torch.Tensor

    coupled_dims = 1

    def __post_init__(self) -> None:
        if not is_positive(self.scale):
            raise ValueError(noise.bad_positive("LowRankGaussianNoise", "scale", self.scale))
        object.__setattr__(self, "scale", as_parameter(self.scale))
        object.__setattr__(self, "factor", torch.as_tensor(as_parameter(self.factor)))
        if self.factor.dim() != 2 or 0 in self.factor.shape:
            raise ValueError(noise.factor_shape(self.factor.shape))
        if not bool(torch.isfinite(self.factor.detach()).all()):
            raise ValueError(noise.bad_factor())
        scale_shape = torch.as_tensor(self.scale).shape
        if scale_shape not in (torch.Size(), torch.Size([1]), self.factor.shape[:1]):
            raise ValueError(noise.low_rank_scale_shape(scale_shape, self.factor.shape))

    def characteristic_function(self, omega: torch.Tensor) -> torch.Tensor:
        r"""
        :math:`\exp(-\omega^\top (s^2 I + F F^\top)\, \omega / 2)`.

        :param omega: frequencies of shape (..., D).
        :return: tensor of shape (...).
        """
        omega = torch.as_tensor(omega)
        isotropic = ((self.scale * omega) ** 2).sum(-1)
        return torch.exp(-0.5 * (isotropic + ((omega @ self.factor.to(omega)) ** 2).sum(-1)))

    def _coupled_dims_of(self, x: torch.Tensor) -> int:
        size = self.factor.shape[0]
        for event_dim in range(1, x.dim() + 1):
            if math.prod(x.shape[-event_dim:]) == size:
                return event_dim
        raise ValueError(noise.factor_misfit(self.factor.shape, x.shape[-1:]))

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        return True  # events of every form are flattened

    def _conditional(
        self, x: torch.Tensor, event_dim: int, validate_args: bool | None = None
    ) -> TorchDistribution:
        flat, event_shape = self._flatten(x, event_dim)
        y = self._around(flat, self._variance(x), self.factor.to(x), validate_args)
        if event_dim == 1:
            return y
        reshape = ReshapeTransform(flat.shape[-1:], event_shape)
        return dist.TransformedDistribution(y, [reshape], validate_args=validate_args)

    def _flatten(self, x: torch.Tensor, event_dim: int) -> tuple[torch.Tensor, torch.Size]:
        event_shape = x.shape[x.dim() - event_dim :]
        if math.prod(event_shape) != self.factor.shape[0]:
            raise ValueError(noise.factor_misfit(self.factor.shape, event_shape))
        return x.reshape(x.shape[: x.dim() - event_dim] + self.factor.shape[:1]), event_shape

    def _around(
        self,
        loc: torch.Tensor,
        variance: torch.Tensor,
        factor: torch.Tensor,
        validate_args: bool | None = None,
    ) -> TorchDistribution:
        return _LowRankNormal(loc, factor, variance, validate_args=validate_args)

    def _variance(self, x: torch.Tensor) -> torch.Tensor:
        return (like(self.scale, x) ** 2).expand(self.factor.shape[:1])

    def _spread_exactly(self, fn: Any, extra: int) -> TorchDistribution | None:
        if isinstance(fn, torch.distributions.Normal) and extra > 0:
            return self._spread_normal(fn, extra)
        if extra > 0:
            return None
        if isinstance(fn, torch.distributions.LowRankMultivariateNormal):
            self._flatten(fn.loc, 1)
            batch_shape = fn.cov_factor.shape[:-2]
            own = self.factor.to(fn.loc).expand(batch_shape + self.factor.shape)
            factor = torch.cat([fn.cov_factor, own], dim=-1)
            return self._around(fn.loc, fn.cov_diag + self._variance(fn.loc), factor)
        if isinstance(fn, torch.distributions.MultivariateNormal):
            self._flatten(fn.loc, 1)
            # A dense covariance came in, so a dense one may go out.
            own = self.factor.to(fn.loc)
            added = torch.diag_embed(self._variance(fn.loc)) + own @ own.mT
            return dist.MultivariateNormal(fn.loc, fn.covariance_matrix + added)
        return None

    def _spread_normal(self, fn: torch.distributions.Normal, extra: int) -> TorchDistribution:
        loc, event_shape = self._flatten(fn.loc, extra)
        variance = fn.scale.reshape(loc.shape) ** 2 + self._variance(loc)
        y = self._around(loc, variance, self.factor.to(loc))
        if extra == 1:
            return y
        return dist.TransformedDistribution(y, [ReshapeTransform(loc.shape[-1:], event_shape)])
