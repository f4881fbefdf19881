# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Base class of the noise kernels: the call, and the recursion of ``spread`` through wrappers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import (
    Delta,
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)

from numpyro_spread import _parents
from numpyro_spread._pytree import FieldsAsPytree, widened
from spread_core.messages import noise


def is_concrete(*values: Any) -> bool:
    """Whether all values are known now; values of tracers cannot be checked."""
    return not any(isinstance(value, jax.core.Tracer) for value in values)


def is_positive(value: ArrayLike) -> bool:
    """Whether every element is a positive, finite number (NaN is not); True where it is unknown."""
    if not is_concrete(value):
        return True
    # NumPy, not jax.numpy: inside a jit trace even constants become tracers there.
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return False
    return bool(np.all((array > 0) & np.isfinite(array)))


def where_valid(value: Any, valid: Any) -> jax.Array:
    """
    ``value``, NaN where it is not valid: what only shows under jit spoils the result there.

    :param value: an array of a floating type.
    :param valid: booleans that broadcast to it.
    """
    return jnp.where(valid, value, jnp.nan)


def positive_parameter(value: ArrayLike) -> float | jax.Array:
    """A parameter that is known to be positive, or NaN where a tracer turns out not to be."""
    parameter = as_parameter(value)
    if is_concrete(parameter):
        return parameter
    return where_valid(parameter, (parameter > 0) & jnp.isfinite(parameter))


def as_parameter(value: ArrayLike) -> float | jax.Array:
    """A Python float, whose type follows x, or an array of a floating type."""
    if isinstance(value, int | float | np.generic):
        return float(value)
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


class SpreadNoise(FieldsAsPytree):
    r"""
    A noise kernel :math:`k(y \mid x)`, a small immutable object and a JAX pytree.

    Passing data :math:`p` and model :math:`q` through the same kernel gives
    :math:`\tilde p(y) = \int k(y \mid x)\, p(x)\, dx` and :math:`\tilde q` alike, and
    :math:`\mathrm{KL}[\tilde p \,\|\, \tilde q] = 0` if and only if :math:`p = q`, provided
    that the map from :math:`p` to :math:`\tilde p` is invertible [1, section 2]. Every kernel of
    this module is, and refuses parameters for which it would not be. Values are checked where they
    are concrete; where those of tracers, as of a scale that is learned, turn out to be wrong,
    results are NaN.

    To write your own kernel, derive a frozen dataclass whose fields are its parameters and
    implement :meth:`conditional`. Make sure that it is valid: a stationary kernel is valid if its
    :meth:`characteristic_function` has no zeros.

        >>> import dataclasses, jax.numpy as jnp, numpyro.distributions as dist
        >>> from numpyro_spread import SpreadNoise
        >>> @dataclasses.dataclass(frozen=True)
        ... class GumbelNoise(SpreadNoise):
        ...     scale: float
        ...     def conditional(self, x, event_dim):
        ...         return dist.Gumbel(x, self.scale).to_event(event_dim)
        >>> GumbelNoise(0.3).spread(dist.Delta(jnp.zeros((5, 2)), event_dim=1)).event_shape
        (2,)

    **References**

    [1] `Spread Divergence`, Mingtian Zhang, Peter Hayes, Tom Bird, Raza Habib, David Barber,
    https://arxiv.org/abs/1811.08968
    """

    #: Number of rightmost dimensions of x that the kernel couples; 0 if it acts element by element.
    coupled_dims: int = 0

    def __call__(self, x: ArrayLike, event_dim: int = 0) -> Distribution:
        """
        The distribution of y given x.

        :param x: values of the site, of shape batch + event.
        :param event_dim: number of event dimensions of the site of x.
        :return: a distribution over y with the same batch and event shape, in float32 if x is in 16
            bits.
        :raises TypeError: if x has an integer type under a continuous kernel, or the reverse.
        :raises ValueError: if the event shape does not fit the kernel.
        """
        self.check_value(x)
        if not 0 <= event_dim <= jnp.ndim(x):
            raise ValueError(noise.event_dim_too_large(repr(self), event_dim, jnp.ndim(x)))
        if event_dim < self.coupled_dims:
            raise ValueError(
                noise.event_dim_too_small(type(self).__name__, self.coupled_dims, event_dim)
            )
        return self._conditional(jnp.asarray(widened(x)), event_dim)

    def spread(self, distribution: Distribution) -> Distribution:
        r"""
        The exact distribution of y when x follows ``distribution``.

        :param distribution: ``Delta`` under every kernel; ``Normal`` and ``MultivariateNormal``
            under the Gaussian kernels; ``Categorical`` under a channel; mixtures of these; all also
            inside ``Independent``, ``MaskedDistribution`` and ``ExpandedDistribution``.
        :return: :math:`\int k(y \mid x)\, p(x)\, dx`, of the same batch and event shape.
        :raises NotImplementedError: for every other distribution, naming the pair and what to do.
        """
        if not isinstance(distribution, Distribution):
            name = type(distribution).__name__
            raise NotImplementedError(noise.no_spread_rule(type(self).__name__, name))
        self._check_site(distribution.shape(), distribution.event_dim)
        return self._spread(distribution, 0)

    def draw(self, rng_key: jax.Array, x: ArrayLike) -> jax.Array:
        """
        One draw of y given x, without knowing which dimensions of x are event dims.

        It is of x's type, or of float32 if that has 16 bits.

        :param rng_key: random key.
        :param x: values of the site, of shape batch + event.
        :raises ValueError: if the kernel does not fit the shape of x.
        """
        self.check_value(x)
        x = jnp.asarray(widened(x))
        y = self._conditional(x, self._coupled_dims_of(x)).sample(rng_key)
        # Samplers draw in the default type, which under x64 is wider than that of float32 data.
        return jnp.asarray(y).astype(x.dtype)

    def characteristic_function(self, omega: ArrayLike) -> jax.Array:
        r"""
        :math:`E\, e^{i \omega (y - x)}` of a stationary kernel: real, and nowhere zero.

        :param omega: frequencies, in radians per unit of x.
        :raises NotImplementedError: for kernels that are not stationary.
        """
        raise NotImplementedError(noise.no_characteristic_function(type(self).__name__))

    def check_value(self, x: ArrayLike) -> None:
        """
        Refuse values of the wrong type.

        :raises TypeError: if x is not of a floating type.
        """
        dtype = jnp.result_type(x)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(noise.integer_under_continuous(type(self).__name__, dtype))

    def conditional(self, x: jax.Array, event_dim: int) -> Distribution:
        """
        The distribution of y given x; implement this method in your own kernel.

        The rest of the class calls it with values whose type and dims are checked. To get the
        distribution from a kernel, call the kernel.

        :param x: values of the site, of shape batch + event.
        :param event_dim: number of event dimensions of the site of x.
        :return: a distribution over y with the same batch shape and number of event dims.
        :raises NotImplementedError: if the class does not implement it.
        """
        # The kernels of the package implement the method below instead.
        if type(self)._conditional is SpreadNoise._conditional:
            raise NotImplementedError(noise.no_conditional(type(self).__name__))
        return self._conditional(x, event_dim)

    def _conditional(self, x: jax.Array, event_dim: int) -> Distribution:
        """The distribution of y given x, which the kernels of this package implement."""
        return self.conditional(x, event_dim)

    def _coupled_dims_of(self, x: jax.Array) -> int:
        """The smallest ``event_dim`` with which ``x`` can be noised."""
        return self.coupled_dims

    def _moves_with_data(self) -> bool:
        """Whether every element is noised alike, so that it does not matter where it stands."""
        return False

    def _placed_dims(self, event_dim: int) -> int:
        """Number of rightmost dims within which elements must keep their places."""
        return max(event_dim, 1)

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        """Whether noise on values of shape ``drawn`` is that of a site that scores ``scored``."""
        placed = 0 if self._moves_with_data() else self._placed_dims(event_dim)
        return placed == 0 or tuple(drawn[-placed:]) == tuple(scored[-placed:])

    def _check_site(self, shape: tuple[int, ...], event_dim: int) -> None:
        """Refuse to spread a distribution of ``shape`` that the parameters would widen."""
        return

    def _for_components(self, event_dim: int) -> SpreadNoise:
        """The kernel for the components of a mixture, with a dimension left of the event dims."""
        return self

    def _spread_exactly(self, fn: Distribution, extra: int) -> Distribution | None:
        """The spread of ``fn.to_event(extra)`` where this kernel has a closed form, else None."""
        return None

    def _spread(self, fn: Distribution, extra: int) -> Distribution:
        """The spread of ``fn.to_event(extra)``."""
        # A kernel that couples dimensions must see them all, so the event dims of the wrappers
        # around a distribution are carried inwards as ``extra`` instead of being put back outside.
        if isinstance(fn, Independent):
            return self._spread(fn.base_dist, extra + fn.reinterpreted_batch_ndims)
        if isinstance(fn, Delta):
            return self._spread_delta(fn, extra)
        separable = extra == 0 or self.coupled_dims == 0
        if isinstance(fn, MaskedDistribution):
            if isinstance(_parents.mask_of(fn), bool):
                return self._spread(fn.base_dist, extra).mask(_parents.mask_of(fn))
            if separable:
                return self._spread(fn.base_dist, 0).mask(_parents.mask_of(fn)).to_event(extra)
        if isinstance(fn, ExpandedDistribution):
            if separable:
                return self._spread(fn.base_dist, 0).expand(fn.batch_shape).to_event(extra)
            inner = _expand_inside(fn)
            if inner is not None:
                return self._spread(inner, extra)
        exact = self._spread_exactly(fn, extra)
        if exact is not None:
            return exact
        if separable:
            mixture = self._spread_mixture(fn)
            if mixture is not None:
                return mixture.to_event(extra)
        name = type(fn).__name__
        raise NotImplementedError(
            noise.no_spread_rule(
                type(self).__name__, name if separable else f"Independent({name}, {extra})"
            )
        )

    def _spread_delta(self, fn: Delta, extra: int) -> Distribution:
        density, value = fn.log_density, fn.v
        if not is_concrete(density):  # as in a scan
            zero = jnp.reshape(density == 0, (*jnp.shape(density), *[1] * fn.event_dim))
            floating = jnp.issubdtype(jnp.result_type(value), jnp.floating)
            value = where_valid(value, zero) if floating else jnp.where(zero, value, -1)
        elif np.any(np.asarray(density) != 0):
            raise NotImplementedError(noise.delta_with_density(type(self).__name__))
        return self(value, fn.event_dim + extra)

    def _spread_mixture(self, fn: Distribution) -> Distribution | None:
        if isinstance(fn, dist.MixtureSameFamily):
            components = self._for_components(fn.event_dim)._spread(fn.component_distribution, 0)
            return dist.MixtureSameFamily(fn.mixing_distribution, components)
        if isinstance(fn, dist.MixtureGeneral):
            parts = [self._spread(part, 0) for part in fn.component_distributions]
            return dist.MixtureGeneral(fn.mixing_distribution, parts)
        return None


def _expand_inside(fn: ExpandedDistribution) -> Distribution | None:
    """``fn`` with its expansion carried into the parameters, or None where that is not known."""
    base = fn.base_dist
    if isinstance(base, Independent):
        inner, ndims = base.base_dist, base.reinterpreted_batch_ndims
        tail = inner.batch_shape[len(inner.batch_shape) - ndims :]
        return inner.expand(fn.batch_shape + tail).to_event(ndims)
    if isinstance(base, Delta):
        value = jnp.broadcast_to(base.v, fn.shape())
        log_density = base.log_density
        return Delta(value, log_density=log_density, event_dim=base.event_dim)
    if type(base) is dist.Normal:
        shape = fn.batch_shape
        return dist.Normal(jnp.broadcast_to(base.loc, shape), jnp.broadcast_to(base.scale, shape))
    return None
