# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The Gaussian that an adaptive contrast puts in the place of the prior, datum by datum."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax, random

from spread_core.math.gaussian_density import GaussianDensity


class GaussianContrast(GaussianDensity):
    """The Gaussian, with draws: of a Student t if its moments are those of a few draws."""

    def detach(self) -> GaussianContrast:
        """The same, as a constant."""
        loc, scale = lax.stop_gradient((self.loc, self.scale))
        tril = None if self.tril is None else lax.stop_gradient(self.tril)
        return replace(self, loc=loc, scale=scale, tril=tril)

    def draw(self, rng_key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Standardised draws of shape sample + batch + event."""
        shape, dtype = (*sample_shape, *self.loc.shape), self.loc.dtype
        if self.num_draws is None:
            return random.normal(rng_key, shape, dtype)
        # Bailey 1994, Polar generation of random variates with the t-distribution: no rejections.
        radius_key, angle_key = random.split(rng_key)
        nu = self.num_draws - 1
        uniform = random.uniform(radius_key, shape, dtype, minval=jnp.finfo(dtype).tiny)
        radius = jnp.sqrt(nu * jnp.expm1(-2 / nu * jnp.log(uniform)))
        angle = random.uniform(angle_key, shape, dtype, maxval=2 * math.pi)
        return math.sqrt(1 + 1 / self.num_draws) * radius * jnp.cos(angle)
