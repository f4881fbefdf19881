# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Stationary noise kernels that act element by element: y = x + scale * standard noise."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from numpyro_spread.noise.base import SpreadNoise, is_concrete, is_positive, positive_parameter
from spread_analysis import student_t_characteristic_function
from spread_core.messages import noise


class _ElementwiseNoise(SpreadNoise, ABC):
    """Independent noise with a ``scale`` on every element of x."""

    scale: ArrayLike

    def __post_init__(self) -> None:
        for name in self._fields():
            value = getattr(self, name)
            if not is_positive(value):
                raise ValueError(noise.bad_positive(type(self).__name__, name, value))
            object.__setattr__(self, name, positive_parameter(value))

    @abstractmethod
    def _around(self, x: jax.Array, *parameters: jax.Array) -> Distribution:
        """The distribution of every element of y, located at x; parameters in field order."""

    def _conditional(self, x: jax.Array, event_dim: int) -> Distribution:
        self._check_event(x.shape, event_dim)
        self._check_range(x.dtype)
        # A Python number would make float32 data float64 inside NumPyro under x64.
        parameters = [jnp.asarray(getattr(self, name), x.dtype) for name in self._fields()]
        return self._around(x, *parameters).to_event(event_dim)

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

    def draw(self, rng_key: jax.Array, x: ArrayLike) -> jax.Array:
        self._check_site(jnp.shape(x), 0)
        return super().draw(rng_key, x)

    @property
    def _shape(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(*(jnp.shape(getattr(self, name)) for name in self._fields()))

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

    def _check_event(self, shape: tuple[int, ...], event_dim: int) -> None:
        """A scale may broadcast like any parameter, but never widen the event of x."""
        full = self._broadcast(shape)
        event_shape = shape[len(shape) - event_dim :]
        if full is None or full[len(full) - event_dim :] != event_shape:
            raise ValueError(noise.scale_misfit(type(self).__name__, self._shape, shape, event_dim))

    def _check_site(self, shape: tuple[int, ...], event_dim: int) -> None:
        if self._broadcast(shape) != shape:
            raise ValueError(noise.scale_misfit(type(self).__name__, self._shape, shape, event_dim))

    def _broadcast(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        try:
            return tuple(jnp.broadcast_shapes(self._shape, shape))
        except ValueError:
            return None

    def _for_components(self, event_dim: int) -> SpreadNoise:
        if len(self._shape) <= event_dim:
            return self

        def with_component_dim(value: Any) -> Any:
            cut = jnp.ndim(value) - event_dim
            return jnp.expand_dims(value, cut) if cut > 0 else value

        changes = {name: with_component_dim(getattr(self, name)) for name in self._fields()}
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class GaussianNoise(_ElementwiseNoise):
    r"""
    Gaussian spread noise, :math:`y = x + s\,\epsilon` with :math:`\epsilon \sim N(0, I)`.

    Its characteristic function is :math:`\exp(-s^2\omega^2/2)`. ``spread`` is exact for ``Delta``,
    ``Normal``, ``MultivariateNormal``, ``LowRankMultivariateNormal`` and mixtures of them.

        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> noise = GaussianNoise(0.3)
        >>> noise(jnp.zeros((5, 2)), event_dim=1).batch_shape
        (5,)
        >>> round(float(noise.spread(dist.Normal(0.0, 0.4)).scale), 6)
        0.5

    :param scale: standard deviation s, in units of x: a number, or an array that broadcasts to the
        event shape of x.
    :raises ValueError: if scale is not positive and finite.
    """

    scale: ArrayLike

    def _around(self, x: jax.Array, *parameters: jax.Array) -> Distribution:
        (scale,) = parameters
        return dist.Normal(x, scale)

    def characteristic_function(self, omega: ArrayLike) -> jax.Array:
        r""":math:`\exp(-s^2\omega^2/2)` for every frequency in ``omega``."""
        return jnp.exp(-0.5 * jnp.square(self.scale * jnp.asarray(omega)))

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
class LaplaceNoise(_ElementwiseNoise):
    r"""
    Laplace spread noise, of density :math:`\exp(-|y - x|/b)/(2b)` in every element.

    Its characteristic function is :math:`1/(1 + b^2\omega^2)`.

        >>> round(float(LaplaceNoise(1.0).characteristic_function(1.0)), 6)
        0.5

    :param scale: scale b, in units of x: a number, or an array that broadcasts to the event shape.
    :raises ValueError: if scale is not positive and finite.
    """

    scale: ArrayLike

    def _around(self, x: jax.Array, *parameters: jax.Array) -> Distribution:
        (scale,) = parameters
        return dist.Laplace(x, scale)

    def characteristic_function(self, omega: ArrayLike) -> jax.Array:
        r""":math:`1/(1 + b^2\omega^2)` for every frequency in ``omega``."""
        return 1.0 / (1.0 + jnp.square(self.scale * jnp.asarray(omega)))


@dataclass(frozen=True, eq=False)
class StudentTNoise(_ElementwiseNoise):
    r"""
    Student t spread noise with ``df`` degrees of freedom; ``df=1`` is Cauchy noise.

    Its characteristic function is
    :math:`K_{\nu/2}(u)\, u^{\nu/2} / (\Gamma(\nu/2)\, 2^{\nu/2-1})` with
    :math:`u = \sqrt\nu\, s|\omega|`; for Cauchy noise :math:`\exp(-s|\omega|)`.

    :param df: degrees of freedom, a number or array.
    :param scale: scale s, in units of x: a number, or an array that broadcasts to the event shape.
    :raises ValueError: if df or scale is not positive and finite.
    """

    df: ArrayLike
    scale: ArrayLike

    def _around(self, x: jax.Array, *parameters: jax.Array) -> Distribution:
        df, scale = parameters
        return dist.StudentT(df, x, scale)

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
class LogisticNoise(_ElementwiseNoise):
    r"""
    Logistic spread noise, whose distribution function is :math:`1/(1 + e^{-(y-x)/s})`.

    Its characteristic function is :math:`\pi s\omega / \sinh(\pi s\omega)`.

    :param scale: scale s, in units of x: a number, or an array that broadcasts to the event shape.
    :raises ValueError: if scale is not positive and finite.
    """

    scale: ArrayLike

    def _around(self, x: jax.Array, *parameters: jax.Array) -> Distribution:
        (scale,) = parameters
        return dist.Logistic(x, scale)

    def characteristic_function(self, omega: ArrayLike) -> jax.Array:
        r""":math:`\pi s\omega / \sinh(\pi s\omega)` for every frequency in ``omega``."""
        u = jnp.abs(jnp.pi * self.scale * jnp.asarray(omega))
        # u / sinh(u) written with decaying exponentials only: sinh overflows at 89 in float32. The
        # inner where keeps 0/0 out of the gradient.
        safe = jnp.where(u == 0, 1.0, u)
        return jnp.where(u == 0, 1.0, 2.0 * safe * jnp.exp(-safe) / -jnp.expm1(-2.0 * safe))
