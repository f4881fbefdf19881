# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The Gaussian that an adaptive contrast puts in the place of the prior, datum by datum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from array_api_compat import array_namespace

from spread_core.math._arrays import Array, stop_gradient
from spread_core.moments import predictive_regret

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianDensity:
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

    loc: Array
    scale: Array
    event_dim: int
    num_draws: int | None = None
    kept: Any = None

    @classmethod
    def from_draws(cls, draws: Array, event_dim: int) -> Self:
        """
        The one with the moments of ``draws``.

        :param draws: of shape S + batch + event.
        :param event_dim: number of event dimensions.
        """
        xp = array_namespace(draws)
        variance = xp.var(draws, axis=0, correction=1)
        return cls(draws.mean(0), xp.sqrt(variance), event_dim, draws.shape[0])

    def standardise(self, value: Array) -> Array:
        """``value`` on the scale on which the critic sees it, in the shape of value."""
        return (value - self.loc) / self.scale

    def log_prob(self, value: Array) -> Array:
        """
        Log density in nats, summed over the event, with the expected regret taken off.

        :param value: draws of shape (sample +) batch + event, not standardised.
        """
        xp, u = array_namespace(value), self.standardise(value)
        if self.num_draws is None:
            log_density = -0.5 * (xp.square(u) + _LOG_2PI)
        else:
            nu, spread = self.num_draws - 1, 1 + 1 / self.num_draws
            # The scatter of the mean blurs the density, whose slope is on average lower by this.
            fixed = stop_gradient(u)
            u = fixed + spread * (u - fixed)
            constant = (
                math.lgamma((nu + 1) / 2)
                - math.lgamma(nu / 2)
                - 0.5 * math.log(nu * math.pi * spread)
                + predictive_regret(self.num_draws)
            )
            log_density = constant - (nu + 1) / 2 * xp.log1p(xp.square(u) / (nu * spread))
        log_density = log_density - xp.log(self.scale)
        if self.kept is not None:
            log_density = xp.where(self.kept, log_density, 0.0)
        return xp.sum(log_density, axis=tuple(range(-self.event_dim, 0)))
