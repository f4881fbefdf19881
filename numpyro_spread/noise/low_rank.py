# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Gaussian noise kernel with a few correlated directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from numpyro.distributions import Distribution
from numpyro.distributions.transforms import ReshapeTransform
from numpyro.distributions.util import validate_sample

from numpyro_spread.noise.base import (
    SpreadNoise,
    as_parameter,
    is_concrete,
    is_positive,
    positive_parameter,
)
from spread_core.messages import noise


class _LowRankNormal(dist.LowRankMultivariateNormal):
    """
    The stock distribution with a Mahalanobis term that does not cancel.

    Woodbury's identity subtracts two numbers that grow as 1/s²: in float32 784 pixels with s = 0.01
    are off by nats. The same number is the minimum over w of a sum of squares, the (v - F w)² / D
    of the isotropic part and the w² of the factor.
    """

    @validate_sample
    def log_prob(self, value: ArrayLike) -> jax.Array:
        difference = (value - self.loc)[..., None]
        tril, variance = self._capacitance_tril, self.cov_diag[..., None]
        identity = jnp.broadcast_to(jnp.eye(tril.shape[-1], dtype=tril.dtype), tril.shape)
        inverse = solve_triangular(tril, identity, lower=True)
        right = jnp.matmul(self.cov_factor.mT, difference / variance)
        w = jnp.matmul(inverse.mT, jnp.matmul(inverse, right))
        rest = difference - jnp.matmul(self.cov_factor, w)
        mahalanobis = (jnp.square(rest) / variance).sum((-2, -1)) + jnp.square(w).sum((-2, -1))
        log_det = 2 * jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)).sum(-1)
        log_det = log_det + jnp.log(self.cov_diag).sum(-1)
        return -0.5 * (self.loc.shape[-1] * math.log(2 * math.pi) + log_det + mahalanobis)


@dataclass(frozen=True, eq=False)
class LowRankGaussianNoise(SpreadNoise):
    r"""
    Gaussian spread noise with covariance :math:`s^2 I + F F^\top`, F of shape D x R.

    Densities use the matrix determinant lemma and the Woodbury identity, so that the cost is
    :math:`O(D R^2)` and no D x D matrix is ever formed. An event of several dimensions (an image)
    is flattened to its D elements.

        >>> import jax.numpy as jnp
        >>> noise = LowRankGaussianNoise(0.1, jnp.ones((4, 1)))
        >>> noise(jnp.zeros((3, 4)), event_dim=1).event_shape
        (4,)

    The exact spread KL never gains from a factor that is learned without a constraint: its optimum
    is F = 0. Learning it needs a constraint (trace, determinant or Lipschitz) and the entropy term.

    :param scale: isotropic standard deviation s: a number, or an array of shape () or (D,).
    :param factor: array of shape (D, R), in units of x.
    :raises ValueError: if scale is not positive and finite or factor is not a finite matrix.
    """

    scale: ArrayLike
    factor: ArrayLike

    coupled_dims = 1

    def __post_init__(self) -> None:
        if not is_positive(self.scale):
            raise ValueError(noise.bad_positive("LowRankGaussianNoise", "scale", self.scale))
        object.__setattr__(self, "scale", positive_parameter(self.scale))
        object.__setattr__(self, "factor", as_parameter(self.factor))
        shape, scale_shape = jnp.shape(self.factor), jnp.shape(self.scale)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(noise.factor_shape(shape))
        if is_concrete(self.factor) and not np.all(np.isfinite(np.asarray(self.factor))):
            raise ValueError(noise.bad_factor())
        if scale_shape not in ((), (1,), shape[:1]):
            raise ValueError(noise.low_rank_scale_shape(scale_shape, shape))

    def characteristic_function(self, omega: ArrayLike) -> jax.Array:
        r"""
        :math:`\exp(-\omega^\top (s^2 I + F F^\top)\, \omega / 2)`.

        :param omega: frequencies of shape (..., D).
        :return: array of shape (...).
        """
        omega = jnp.asarray(omega)
        isotropic = jnp.square(self.scale * omega).sum(-1)
        return jnp.exp(-0.5 * (isotropic + jnp.square(omega @ self.factor).sum(-1)))

    def _coupled_dims_of(self, x: jax.Array) -> int:
        size = jnp.shape(self.factor)[0]
        for event_dim in range(1, x.ndim + 1):
            if math.prod(x.shape[-event_dim:]) == size:
                return event_dim
        raise ValueError(noise.factor_misfit(jnp.shape(self.factor), x.shape[-1:]))

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        return True  # events of every form are flattened

    def _conditional(self, x: jax.Array, event_dim: int) -> Distribution:
        return self._around(x, event_dim, self._variance(x))

    def _around(self, loc: jax.Array, event_dim: int, variance: jax.Array) -> Distribution:
        """Low-rank normal around ``loc``, whose last ``event_dim`` dims are one event."""
        cut = loc.ndim - event_dim
        batch_shape, event_shape = loc.shape[:cut], loc.shape[cut:]
        shape = jnp.shape(self.factor)
        if math.prod(event_shape) != shape[0]:
            raise ValueError(noise.factor_misfit(shape, event_shape))
        flat = loc.reshape((*batch_shape, shape[0]))
        factor = jnp.asarray(self.factor, flat.dtype)
        y = _LowRankNormal(flat, factor, variance)
        if event_dim == 1:
            return y
        return dist.TransformedDistribution(y, ReshapeTransform(event_shape, shape[:1]))

    def _variance(self, loc: jax.Array) -> jax.Array:
        variance = jnp.square(jnp.asarray(self.scale, loc.dtype))
        return jnp.broadcast_to(variance, jnp.shape(self.factor)[:1])

    def _spread_exactly(self, fn: Distribution, extra: int) -> Distribution | None:
        if type(fn) is dist.Normal and extra > 0:
            loc, scale = (jnp.broadcast_to(v, fn.batch_shape) for v in (fn.loc, fn.scale))
            cut = loc.ndim - extra
            added = jnp.square(scale).reshape((*loc.shape[:cut], -1))
            if added.shape[-1] != jnp.shape(self.factor)[0]:
                raise ValueError(noise.factor_misfit(jnp.shape(self.factor), loc.shape[cut:]))
            return self._around(loc, extra, self._variance(loc) + added)
        if extra > 0:
            return None
        low_rank = isinstance(fn, dist.LowRankMultivariateNormal)
        joint = low_rank or type(fn) is dist.MultivariateNormal
        if joint and fn.event_shape != jnp.shape(self.factor)[:1]:
            raise ValueError(noise.factor_misfit(jnp.shape(self.factor), fn.event_shape))
        if low_rank:
            own = jnp.broadcast_to(
                jnp.asarray(self.factor, fn.loc.dtype),
                fn.cov_factor.shape[:-2] + jnp.shape(self.factor),
            )
            factor = jnp.concatenate([fn.cov_factor, own], axis=-1)
            variance = fn.cov_diag + self._variance(fn.loc)
            return _LowRankNormal(fn.loc, factor, variance)
        if type(fn) is dist.MultivariateNormal:
            # A dense covariance came in, so a dense one may go out.
            own = jnp.asarray(self.factor, fn.loc.dtype)
            added = jnp.diag(self._variance(fn.loc)) + own @ own.T
            return dist.MultivariateNormal(fn.loc, fn.covariance_matrix + added)
        return None
