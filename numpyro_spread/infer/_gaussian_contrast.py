# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The Gaussian that an adaptive contrast puts in the place of the prior, datum by datum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random

from spread_core.moments import predictive_regret

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianContrast:
    r"""
    :math:`r(z \mid x)` with given location and scale, all events' elements independent.

    If these are the moments of only S draws, it is the Student t with which a further draw of a
    Gaussian falls around them. A critic that does not see the moments can do no better, and what
    this costs in expectation, a constant, is taken off: for a Gaussian guide the log density plus a
    logit of zero is then right on average for every S, and so is its gradient in the draw.

    :param loc: of shape batch + event; a constant.
    :param scale: alike, positive.
    :param event_dim: number of event dimensions.
    :param num_draws: S, or None if the moments are known.
    :param kept: which elements of the events count, broadcasting; None for all.
    """

    loc: jax.Array
    scale: jax.Array
    event_dim: int
    num_draws: int | None = None
    kept: Any = None

    @staticmethod
    def from_draws(draws: jax.Array, event_dim: int) -> GaussianContrast:
        """
        The one with the moments of ``draws``.

        :param draws: of shape S + batch + event.
        :param event_dim: number of event dimensions.
        """
        return GaussianContrast(draws.mean(0), draws.std(0, ddof=1), event_dim, draws.shape[0])

    def standardise(self, value: jax.Array) -> jax.Array:
        """``value`` on the scale on which the critic sees it, in the shape of value."""
        return (value - self.loc) / self.scale

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

    def log_prob(self, value: jax.Array) -> jax.Array:
        """
        Log density in nats, summed over the event, with the expected regret taken off.

        :param value: draws of shape (sample +) batch + event, not standardised.
        """
        u = self.standardise(value)
        if self.num_draws is None:
            log_density = -0.5 * (jnp.square(u) + _LOG_2PI)
        else:
            nu, spread = self.num_draws - 1, 1 + 1 / self.num_draws
            # The scatter of the mean blurs the density, whose slope is on average lower by this.
            u = lax.stop_gradient(u) + spread * (u - lax.stop_gradient(u))
            constant = (
                math.lgamma((nu + 1) / 2)
                - math.lgamma(nu / 2)
                - 0.5 * math.log(nu * math.pi * spread)
                + predictive_regret(self.num_draws)
            )
            log_density = constant - (nu + 1) / 2 * jnp.log1p(jnp.square(u) / (nu * spread))
        log_density = log_density - jnp.log(self.scale)
        if self.kept is not None:
            log_density = jnp.where(self.kept, log_density, 0.0)
        return log_density.sum(tuple(range(-self.event_dim, 0)))
