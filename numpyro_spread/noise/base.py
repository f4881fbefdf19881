# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Base class of the noise kernels, on arrays of JAX and distributions of NumPyro."""

from __future__ import annotations

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
from spread_core.noise.base import Backend, Kernel


def is_concrete(*values: Any) -> bool:
    """Whether all values are known now; values of tracers cannot be checked."""
    return not any(isinstance(value, jax.core.Tracer) for value in values)


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


def _known(value: Any) -> Any:
    # NumPy, not jax.numpy: inside a jit trace even constants become tracers there.
    return np.asarray(value) if is_concrete(value) else None


def _type_of(x: ArrayLike) -> tuple[Any, str]:
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.floating):
        return dtype, "floating"
    return dtype, "integer" if jnp.issubdtype(dtype, jnp.integer) else "other"


def _range_of(x: ArrayLike) -> tuple[Any, Any] | None:
    if not is_concrete(x) or not np.size(x):
        return None
    return np.min(np.asarray(x)), np.max(np.asarray(x))


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


BACKEND = Backend(
    as_array=jnp.asarray,
    widened=lambda x: jnp.asarray(widened(x)),
    as_parameter=as_parameter,
    as_positive=positive_parameter,
    known=_known,
    type_of=_type_of,
    range_of=_range_of,
    identity=np.eye,
    distribution=Distribution,
    independent=Independent,
    delta=Delta,
    masked=MaskedDistribution,
    expanded=ExpandedDistribution,
    mask_of=_parents.mask_of,
    expanded_inside=_expand_inside,
)
is_positive = BACKEND.is_positive


class SpreadNoise(Kernel[ArrayLike, jax.Array, Distribution], FieldsAsPytree):
    r"""
    A noise kernel :math:`k(y \mid x)`, a small immutable object.

        >>> import dataclasses, jax.numpy as jnp, numpyro.distributions as dist
        >>> from numpyro_spread import SpreadNoise
        >>> @dataclasses.dataclass(frozen=True)
        ... class GumbelNoise(SpreadNoise):
        ...     scale: float
        ...     def conditional(self, x, event_dim):
        ...         return dist.Gumbel(x, self.scale).to_event(event_dim)
        >>> GumbelNoise(0.3).spread(dist.Delta(jnp.zeros((5, 2)), event_dim=1)).event_shape
        (2,)
    """

    _backend = BACKEND

    def draw(self, rng_key: jax.Array, x: ArrayLike) -> jax.Array:
        """
        One draw of y given x, without knowing which dimensions of x are event dims.

        It is of x's type, or of float32 if that has 16 bits.

        :param rng_key: random key.
        :param x: values of the site, of shape batch + event.
        :raises ValueError: if the kernel does not fit the shape of x.
        """
        self._check_drawn(jnp.shape(x))
        self.check_value(x)
        x = jnp.asarray(widened(x))
        # Not validated: NaN in a failed simulation is for the loss to count, or to leave out.
        y = self._conditional(x, self._coupled_dims_of(x), validate_args=False).sample(rng_key)
        # Samplers draw in the default type, which under x64 is wider than that of float32 data.
        return jnp.asarray(y).astype(x.dtype)

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
