# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Gaussian noise kernel with a few correlated directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from numpyro.distributions import Distribution
from numpyro.distributions.transforms import ReshapeTransform
from numpyro.distributions.util import validate_sample

from numpyro_spread.noise.base import SpreadNoise
from spread_core.noise.low_rank import LowRankGaussian


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
class LowRankGaussianNoise(LowRankGaussian, SpreadNoise):
    r"""
    Gaussian spread noise with covariance :math:`s^2 I + F F^\top`, F of shape D x R.

        >>> import jax.numpy as jnp
        >>> noise = LowRankGaussianNoise(0.1, jnp.ones((4, 1)))
        >>> noise(jnp.zeros((3, 4)), event_dim=1).event_shape
        (4,)
    """

    scale: ArrayLike
    factor: ArrayLike

    def _conditional(
        self, x: jax.Array, event_dim: int, validate_args: bool | None = None
    ) -> Distribution:
        return self._around(x, event_dim, self._variance(x), validate_args)

    def _around(
        self,
        loc: jax.Array,
        event_dim: int,
        variance: jax.Array,
        validate_args: bool | None = None,
    ) -> Distribution:
        """Low-rank normal around ``loc``, whose last ``event_dim`` dims are one event."""
        cut = loc.ndim - event_dim
        batch_shape, event_shape = loc.shape[:cut], loc.shape[cut:]
        shape = jnp.shape(self.factor)
        self._check_fit(event_shape)
        flat = loc.reshape((*batch_shape, shape[0]))
        factor = jnp.asarray(self.factor, flat.dtype)
        y = _LowRankNormal(flat, factor, variance, validate_args=validate_args)
        if event_dim == 1:
            return y
        reshape = ReshapeTransform(event_shape, shape[:1])
        return dist.TransformedDistribution(y, reshape, validate_args=validate_args)

    def _variance(self, loc: jax.Array) -> jax.Array:
        variance = jnp.square(jnp.asarray(self.scale, loc.dtype))
        return jnp.broadcast_to(variance, jnp.shape(self.factor)[:1])

    def _spread_exactly(self, fn: Distribution, extra: int) -> Distribution | None:
        if type(fn) is dist.Normal and extra > 0:
            loc, scale = (jnp.broadcast_to(v, fn.batch_shape) for v in (fn.loc, fn.scale))
            cut = loc.ndim - extra
            added = jnp.square(scale).reshape((*loc.shape[:cut], -1))
            self._check_fit(loc.shape[cut:])
            return self._around(loc, extra, self._variance(loc) + added)
        if extra > 0:
            return None
        low_rank = isinstance(fn, dist.LowRankMultivariateNormal)
        joint = low_rank or type(fn) is dist.MultivariateNormal
        if joint:
            self._check_fit(fn.event_shape)
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
