# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Stationary noise kernels that act element by element: y = x + scale * standard noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from numpyro_spread.noise.base import SpreadNoise, is_concrete
from spread_analysis import student_t_characteristic_function
from spread_core.messages import noise
from spread_core.noise import stationary

__all__ = ["GaussianNoise", "LaplaceNoise", "LogisticNoise", "StudentTNoise"]


class _ElementwiseNoise(SpreadNoise, stationary.Elementwise, ABC):
    """Independent noise with a ``scale`` on every element of x."""

    @abstractmethod
    def _around(
        self, x: jax.Array, *parameters: jax.Array, validate_args: bool | None
    ) -> Distribution:
        """The distribution of every element of y, located at x; parameters in field order."""

    def _conditional(
        self, x: jax.Array, event_dim: int, validate_args: bool | None = None
    ) -> Distribution:
        self._check_event(x.shape, event_dim)
        self._check_range(x.dtype)
        # A Python number would make float32 data float64 inside NumPyro under x64.
        parameters = [jnp.asarray(getattr(self, name), x.dtype) for name in self._fields()]
        return self._around(x, *parameters, validate_args=validate_args).to_event(event_dim)

    def _check_range(self, dtype: Any) -> None:
        """Refuse what is 0 or inf in the type of x: XLA flushes subnormal numbers to 0."""
        limits = jnp.finfo(dtype)
        low, high = float(limits.tiny), float(limits.max)
        for name in self._fields():
            value = getattr(self, name)
            if is_concrete(value) and not np.all(
                (low <= np.asarray(value)) & (np.asarray(value) <= high)
            ):
                got = f"{value}, which {limits.dtype} cannot hold"
                raise ValueError(noise.bad_positive(type(self).__name__, name, got))


@dataclass(frozen=True, eq=False)
class GaussianNoise(stationary.Gaussian, _ElementwiseNoise):
    r"""
    Gaussian spread noise, :math:`y = x + s\,\epsilon` with :math:`\epsilon \sim N(0, I)`.

        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> noise = GaussianNoise(0.3)
        >>> noise(jnp.zeros((5, 2)), event_dim=1).batch_shape
        (5,)
        >>> round(float(noise.spread(dist.Normal(0.0, 0.4)).scale), 6)
        0.5
    """

    scale: ArrayLike

    def _around(
        self, x: jax.Array, *parameters: jax.Array, validate_args: bool | None
    ) -> Distribution:
        return dist.Normal(x, *parameters, validate_args=validate_args)

    def _spread_exactly(self, fn: Distribution, extra: int) -> Distribution | None:
        if type(fn) is dist.Normal:
            scale = jnp.hypot(fn.scale, jnp.asarray(self.scale, jnp.result_type(fn.scale, float)))
            return dist.Normal(fn.loc, scale).to_event(extra)
        if isinstance(fn, dist.LowRankMultivariateNormal):
            variance = fn.cov_diag + self._variance(fn.loc)
            return dist.LowRankMultivariateNormal(fn.loc, fn.cov_factor, variance).to_event(extra)
        if type(fn) is dist.MultivariateNormal:
            # A dense covariance came in, so a dense one may go out.
            variance = self._variance(fn.loc)
            added = variance[..., None] * jnp.eye(fn.event_shape[0], dtype=variance.dtype)
            covariance = fn.covariance_matrix + added
            return dist.MultivariateNormal(fn.loc, covariance).to_event(extra)
        return None

    def _variance(self, loc: jax.Array) -> jax.Array:
        variance = jnp.square(jnp.asarray(self.scale, loc.dtype))
        return jnp.broadcast_to(variance, jnp.broadcast_shapes(variance.shape, loc.shape[-1:]))


@dataclass(frozen=True, eq=False)
class LaplaceNoise(stationary.Laplace, _ElementwiseNoise):
    r"""
    Laplace spread noise, of density :math:`\exp(-|y - x|/b)/(2b)` in every element.

        >>> round(float(LaplaceNoise(1.0).characteristic_function(1.0)), 6)
        0.5
    """

    scale: ArrayLike

    def _around(
        self, x: jax.Array, *parameters: jax.Array, validate_args: bool | None
    ) -> Distribution:
        return dist.Laplace(x, *parameters, validate_args=validate_args)


@dataclass(frozen=True, eq=False)
class StudentTNoise(stationary.StudentT, _ElementwiseNoise):
    r"""
    Student t spread noise with ``df`` degrees of freedom; ``df=1`` is Cauchy noise.

        >>> round(float(StudentTNoise(df=1.0, scale=1.0).characteristic_function(0.0)), 6)
        1.0
    """

    df: ArrayLike
    scale: ArrayLike

    def _around(
        self, x: jax.Array, *parameters: jax.Array, validate_args: bool | None
    ) -> Distribution:
        df, scale = parameters
        return dist.StudentT(df, x, scale, validate_args=validate_args)

    def characteristic_function(self, omega: ArrayLike) -> jax.Array:
        """
        The Bessel form above for every frequency in ``omega``, computed by SciPy on the host.

        It works under jit and vmap, but has no gradient.
        """
        omega = jnp.asarray(omega, jnp.result_type(omega, float))
        # Of one shape, so that vmap may add a dimension to all of them.
        numbers = jnp.broadcast_arrays(omega, self.df, self.scale)
        result = jax.ShapeDtypeStruct(numbers[0].shape, omega.dtype)

        def on_host(*numbers: Any) -> Any:
            values = student_t_characteristic_function(*(np.asarray(n, float) for n in numbers))
            return np.asarray(values, omega.dtype)

        return jax.pure_callback(on_host, result, *numbers, vmap_method="broadcast_all")


@dataclass(frozen=True, eq=False)
class LogisticNoise(stationary.Logistic, _ElementwiseNoise):
    r"""
    Logistic spread noise, whose distribution function is :math:`1/(1 + e^{-(y-x)/s})`.

        >>> round(float(LogisticNoise(1.0).characteristic_function(0.0)), 6)
        1.0
    """

    scale: ArrayLike

    def _around(
        self, x: jax.Array, *parameters: jax.Array, validate_args: bool | None
    ) -> Distribution:
        return dist.Logistic(x, *parameters, validate_args=validate_args)
