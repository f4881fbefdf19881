# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Stationary noise kernels that act element by element: y = x + scale * standard noise."""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution

from pyro_spread.noise.base import SpreadNoise, as_parameter, is_positive, like
from spread_analysis import student_t_characteristic_function
from spread_core.messages import noise


class _ElementwiseNoise(SpreadNoise, ABC):
    """Independent noise with a ``scale`` on every element of x."""

    scale: float | torch.Tensor

    def __post_init__(self) -> None:
        for name in self._fields():
            value = getattr(self, name)
            if not is_positive(value):
                raise ValueError(noise.bad_positive(type(self).__name__, name, value))
            object.__setattr__(self, name, as_parameter(value))

    @classmethod
    @functools.cache
    def _fields(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

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

    def draw(self, x: torch.Tensor) -> torch.Tensor:
        self._check_site(x.shape, 0)
        return super().draw(x)

    @functools.cached_property
    def _shape(self) -> torch.Size:
        parameters = (getattr(self, name) for name in self._fields())
        shapes = [v.shape for v in parameters if isinstance(v, torch.Tensor)]
        return torch.broadcast_shapes(*shapes) if shapes else torch.Size()

    def _moves_with_data(self) -> bool:
        return not self._shape

    def _placed_dims(self, event_dim: int) -> int:
        return max(event_dim, self._rank, 1)

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        rank = self._rank
        return rank == 0 or tuple(drawn[-rank:]) == tuple(scored[-rank:])

    @property
    def _rank(self) -> int:
        """Number of rightmost dims over which the parameters differ."""
        sizes = list(self._shape)
        while sizes and sizes[0] == 1:
            del sizes[0]
        return len(sizes)

    def _check_event(self, shape: torch.Size, event_dim: int) -> None:
        """A scale may broadcast like any parameter, but never widen the event of x."""
        full = self._broadcast(shape)
        if full is None or full[len(full) - event_dim :] != shape[len(shape) - event_dim :]:
            raise ValueError(noise.scale_misfit(type(self).__name__, self._shape, shape, event_dim))

    def _check_site(self, shape: torch.Size, event_dim: int) -> None:
        if self._broadcast(shape) != shape:
            raise ValueError(noise.scale_misfit(type(self).__name__, self._shape, shape, event_dim))

    def _broadcast(self, shape: torch.Size) -> torch.Size | None:
        if not self._shape:
            return shape
        try:
            return torch.broadcast_shapes(self._shape, shape)
        except RuntimeError:
            return None

    def _for_components(self, event_dim: int) -> SpreadNoise:
        if len(self._shape) <= event_dim:
            return self

        def with_component_dim(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.dim() > event_dim:
                return value.unsqueeze(value.dim() - event_dim)
            return value

        changes = {name: with_component_dim(getattr(self, name)) for name in self._fields()}
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


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
class GaussianNoise(_ElementwiseNoise):
    r"""
    Gaussian spread noise, :math:`y = x + s\,\epsilon` with :math:`\epsilon \sim N(0, I)`.

    Its characteristic function is :math:`\exp(-s^2\omega^2/2)`. ``spread`` is exact for ``Delta``,
    ``Normal``, ``MultivariateNormal``, ``LowRankMultivariateNormal`` and mixtures of them.

        >>> import torch, pyro.distributions as dist
        >>> noise = GaussianNoise(0.3)
        >>> noise(torch.zeros(5, 2), event_dim=1).batch_shape
        torch.Size([5])
        >>> noise.spread(dist.Normal(0.0, 0.4)).scale
        tensor(0.5000)

    :param scale: standard deviation s, in units of x: a number, or a tensor that broadcasts to the
        event shape of x.
    :raises ValueError: if scale is not positive and finite.
    """

    scale: float | torch.Tensor

    def _around(
        self, x: torch.Tensor, *parameters: Any, validate_args: bool | None
    ) -> TorchDistribution:
        (scale,) = parameters
        if not self._shape:
            return _SharedScaleNormal(x, scale, validate_args)
        return dist.Normal(x, scale, validate_args=validate_args)

    def characteristic_function(self, omega: torch.Tensor) -> torch.Tensor:
        r""":math:`\exp(-s^2\omega^2/2)` for every frequency in ``omega``."""
        return torch.exp(-0.5 * (self.scale * torch.as_tensor(omega)) ** 2)

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
class LaplaceNoise(_ElementwiseNoise):
    r"""
    Laplace spread noise, of density :math:`\exp(-|y - x|/b)/(2b)` in every element.

    Its characteristic function is :math:`1/(1 + b^2\omega^2)`.

    :param scale: scale b, in units of x: a number, or a tensor that broadcasts to the event shape.
    :raises ValueError: if scale is not positive and finite.
    """

    scale: float | torch.Tensor

    def _around(
        self, x: torch.Tensor, *parameters: Any, validate_args: bool | None
    ) -> TorchDistribution:
        (scale,) = parameters
        return dist.Laplace(x, scale, validate_args=validate_args)

    def characteristic_function(self, omega: torch.Tensor) -> torch.Tensor:
        r""":math:`1/(1 + b^2\omega^2)` for every frequency in ``omega``."""
        return 1.0 / (1.0 + (self.scale * torch.as_tensor(omega)) ** 2)


@dataclass(frozen=True, eq=False)
class StudentTNoise(_ElementwiseNoise):
    r"""
    Student t spread noise with ``df`` degrees of freedom; ``df=1`` is Cauchy noise.

    Its characteristic function is
    :math:`K_{\nu/2}(u)\, u^{\nu/2} / (\Gamma(\nu/2)\, 2^{\nu/2-1})` with
    :math:`u = \sqrt\nu\, s|\omega|`; for Cauchy noise :math:`\exp(-s|\omega|)`.

    :param df: degrees of freedom, a number or tensor.
    :param scale: scale s, in units of x: a number, or a tensor that broadcasts to the event shape.
    :raises ValueError: if df or scale is not positive and finite.
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
class LogisticNoise(_ElementwiseNoise):
    r"""
    Logistic spread noise, whose distribution function is :math:`1/(1 + e^{-(y-x)/s})`.

    Its characteristic function is :math:`\pi s\omega / \sinh(\pi s\omega)`.

    :param scale: scale s, in units of x: a number, or a tensor that broadcasts to the event shape.
    :raises ValueError: if scale is not positive and finite.
    """

    scale: float | torch.Tensor

    def _around(
        self, x: torch.Tensor, *parameters: Any, validate_args: bool | None
    ) -> TorchDistribution:
        (scale,) = parameters
        return dist.Logistic(x, scale, validate_args=validate_args)

    def characteristic_function(self, omega: torch.Tensor) -> torch.Tensor:
        r""":math:`\pi s\omega / \sinh(\pi s\omega)` for every frequency in ``omega``."""
        u = torch.abs(torch.pi * self.scale * torch.as_tensor(omega))
        # u / sinh(u) written with decaying exponentials only: sinh overflows at 89 in float32. The
        # inner where keeps 0/0 out of the gradient.
        one = torch.ones_like(u)
        safe = torch.where(u == 0, one, u)
        return torch.where(u == 0, one, 2 * safe * torch.exp(-safe) / -torch.expm1(-2 * safe))
