# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Stationary noise kernels that act element by element: y = x + scale * standard noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution

from pyro_spread.noise.base import SpreadNoise, is_positive, like
from spread_analysis import student_t_characteristic_function
from spread_core.noise import stationary

__all__ = ["GaussianNoise", "LaplaceNoise", "LogisticNoise", "StudentTNoise"]


class _ElementwiseNoise(SpreadNoise, stationary.Elementwise, ABC):
    """Independent noise with a ``scale`` on every element of x."""

    @abstractmethod
    def _around(
        self, x: torch.Tensor, *parameters: Any, validate_args: bool | None
    ) -> TorchDistribution:
        """The distribution of every element of y, located at x; parameters in field order."""

    def _conditional(
        self, x: torch.Tensor, event_dim: int, validate_args: bool | None = None
    ) -> TorchDistribution:
        self._check_event(x.shape, event_dim)
        # Numbers stay numbers: their logarithm costs nothing, and they take the type of x anyway.
        values = (getattr(self, name) for name in self._fields())
        parameters = [like(v, x) if isinstance(v, torch.Tensor) else v for v in values]
        return self._around(x, *parameters, validate_args=validate_args).to_event(event_dim)


class _SharedScaleNormal(dist.Normal):
    """
    A ``Normal`` whose elements share one scale: the same numbers with half the passes over them.

    The likelihood of a spread generator is this density at every pixel of every image. Stock
    ``Normal`` takes the logarithm of, and validates, one copy of the scale per element.
    """

    def __init__(
        self, loc: torch.Tensor, shared: float | torch.Tensor, validate_args: bool | None = None
    ) -> None:
        scale = torch.as_tensor(shared, dtype=loc.dtype, device=loc.device).expand(loc.shape)
        super().__init__(loc, scale, validate_args=False)
        self._shared = shared
        self._validate_args = self._wants_validation(validate_args)
        # One sum finds NaN in loc, and a learned scale is looked at once instead of per element;
        # stock code words the error.
        learned = isinstance(shared, torch.Tensor)
        if self._validate_args and (
            bool(torch.isnan(loc.detach().sum())) or (learned and not is_positive(shared))
        ):
            dist.Normal(loc, scale, validate_args=True)

    @staticmethod
    def _wants_validation(validate_args: bool | None) -> bool:
        return dist.Normal._validate_args if validate_args is None else validate_args

    def expand(
        self, batch_shape: torch.Size, _instance: _SharedScaleNormal | None = None
    ) -> _SharedScaleNormal:
        expanded = _SharedScaleNormal(self.loc.expand(batch_shape), self._shared, False)
        expanded._validate_args = self._validate_args
        return expanded

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> TorchDistribution:
        if reinterpreted_batch_ndims == 0:
            return self
        event_dim = (
            self.loc.dim() if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        )
        return _SharedScaleEvent(self, event_dim)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self._event_log_prob(value, 0)

    def _event_log_prob(self, value: torch.Tensor, event_dim: int) -> torch.Tensor:
        if self._validate_args and bool(torch.isnan(value.detach().sum())):
            self._validate_sample(value)
        shared = self._shared
        log_scale = math.log(shared) if isinstance(shared, (int, float)) else torch.log(shared)
        constant = log_scale + 0.5 * math.log(2 * math.pi)
        difference = value - self.loc
        squares = difference * difference
        if event_dim == 0:
            return squares * (-0.5 / shared**2) - constant
        # Summed first, so that one number per event is scaled and shifted instead of one per pixel.
        # Of tensors with provenance, which TraceGraph_ELBO makes, a part of the shape is a tuple.
        event = math.prod(squares.shape[squares.dim() - event_dim :])
        total = squares.flatten(squares.dim() - event_dim).sum(-1)
        return total * (-0.5 / shared**2) - event * constant


class _SharedScaleEvent(dist.Independent):
    """:class:`_SharedScaleNormal` with event dims."""

    def expand(
        self, batch_shape: torch.Size, _instance: _SharedScaleEvent | None = None
    ) -> _SharedScaleEvent:
        ndims = self.reinterpreted_batch_ndims
        base = self.base_dist.expand(torch.Size(batch_shape) + self.event_shape[:ndims])
        return _SharedScaleEvent(base, ndims)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self.base_dist._event_log_prob(value, self.reinterpreted_batch_ndims)


@dataclass(frozen=True, eq=False)
class GaussianNoise(stationary.Gaussian, _ElementwiseNoise):
    r"""
    Gaussian spread noise, :math:`y = x + s\,\epsilon` with :math:`\epsilon \sim N(0, I)`.

        >>> import torch, pyro.distributions as dist
        >>> noise = GaussianNoise(0.3)
        >>> noise(torch.zeros(5, 2), event_dim=1).batch_shape
        torch.Size([5])
        >>> noise.spread(dist.Normal(0.0, 0.4)).scale
        tensor(0.5000)
    """

    scale: float | torch.Tensor

    def _around(
        self, x: torch.Tensor, *parameters: Any, validate_args: bool | None
    ) -> TorchDistribution:
        (scale,) = parameters
        if not self._shape:
            return _SharedScaleNormal(x, scale, validate_args)
        return dist.Normal(x, scale, validate_args=validate_args)

    def _spread_exactly(self, fn: Any, extra: int) -> TorchDistribution | None:
        if isinstance(fn, torch.distributions.Normal):
            self._check_event(fn.loc.shape, extra)
            scale = torch.hypot(fn.scale, like(self.scale, fn.scale))
            return dist.Normal(fn.loc, scale).to_event(extra)
        if isinstance(fn, torch.distributions.LowRankMultivariateNormal):
            self._check_event(fn.loc.shape, 1 + extra)
            variance = fn.cov_diag + self._variance(fn.loc)
            return dist.LowRankMultivariateNormal(fn.loc, fn.cov_factor, variance).to_event(extra)
        if isinstance(fn, torch.distributions.MultivariateNormal):
            self._check_event(fn.loc.shape, 1 + extra)
            covariance = fn.covariance_matrix + torch.diag_embed(self._variance(fn.loc))
            return dist.MultivariateNormal(fn.loc, covariance).to_event(extra)
        return None

    def _variance(self, x: torch.Tensor) -> torch.Tensor:
        return (like(self.scale, x) ** 2).expand_as(x)


@dataclass(frozen=True, eq=False)
class LaplaceNoise(stationary.Laplace, _ElementwiseNoise):
    r"""
    Laplace spread noise, of density :math:`\exp(-|y - x|/b)/(2b)` in every element.

        >>> LaplaceNoise(1.0).characteristic_function(1.0)
        tensor(0.5000)
    """

    scale: float | torch.Tensor

    def _around(
        self, x: torch.Tensor, *parameters: Any, validate_args: bool | None
    ) -> TorchDistribution:
        return dist.Laplace(x, *parameters, validate_args=validate_args)


@dataclass(frozen=True, eq=False)
class StudentTNoise(stationary.StudentT, _ElementwiseNoise):
    r"""
    Student t spread noise with ``df`` degrees of freedom; ``df=1`` is Cauchy noise.

        >>> StudentTNoise(df=1.0, scale=1.0).characteristic_function(0.0)
        tensor(1.)
    """

    df: float | torch.Tensor
    scale: float | torch.Tensor

    def _around(
        self, x: torch.Tensor, *parameters: Any, validate_args: bool | None
    ) -> TorchDistribution:
        df, scale = parameters
        return dist.StudentT(df, x, scale, validate_args=validate_args)

    def characteristic_function(self, omega: torch.Tensor) -> torch.Tensor:
        """The Bessel form above, for every frequency in ``omega``; SciPy's, without a gradient."""
        df, scale, numbers = (
            torch.as_tensor(v).detach().cpu().numpy() for v in (self.df, self.scale, omega)
        )
        return torch.as_tensor(student_t_characteristic_function(numbers, df, scale)).to(
            torch.as_tensor(omega)
        )


@dataclass(frozen=True, eq=False)
class LogisticNoise(stationary.Logistic, _ElementwiseNoise):
    r"""
    Logistic spread noise, whose distribution function is :math:`1/(1 + e^{-(y-x)/s})`.

        >>> LogisticNoise(1.0).characteristic_function(0.0)
        tensor(1.)
    """

    scale: float | torch.Tensor

    def _around(
        self, x: torch.Tensor, *parameters: Any, validate_args: bool | None
    ) -> TorchDistribution:
        return dist.Logistic(x, *parameters, validate_args=validate_args)
