# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The Gaussian that an adaptive contrast puts in the place of the prior, datum by datum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

from array_api_compat import array_namespace

from spread_core.math._arrays import Array, stop_gradient
from spread_core.moments import plug_in_regret, predictive_regret

_LOG_2PI = math.log(2 * math.pi)
# With fewer draws a covariance matrix says little.
DRAWS_PER_DIMENSION = 4
# Of correlations: without it rounding may leave no positive definite matrix.
_RIDGE = 1e-5


@dataclass(frozen=True)
class GaussianDensity:
    r"""
    :math:`r(z \mid x)` with given location and scale, the event's elements independent unless
    ``tril`` says otherwise.

    If these are the moments of only S draws, it is the Student t with which a further draw of a
    Gaussian falls around them. A critic that does not see the moments can do no better, and what
    this costs in expectation, a constant, is taken off: for a Gaussian guide the log density plus a
    logit of zero is then right on average for every S, and so is its gradient in the draw.

    :param loc: of shape batch + event; a constant.
    :param scale: alike, positive.
    :param event_dim: number of event dimensions.
    :param num_draws: S, or None if the moments are known.
    :param kept: which elements of the events count, broadcasting; None for all.
    :param tril: lower Cholesky factor of the covariance, of shape batch + (D, D), with ``scale`` as
        its diagonal; the moments are then known. None: independent elements.
    """

    loc: Array
    scale: Array
    event_dim: int
    num_draws: int | None = None
    kept: Any = None
    tril: Any = None

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

    @classmethod
    def of_covariance(cls, draws: Array, event_dim: int) -> Self:
        """
        The one with the mean and the whole covariance of ``draws``, taken as known.

        Events that are no vectors, and draws of fewer than four per dimension, have independent
        elements. What does not vary gets a scale of one, and hardly any correlation is perfect, so
        that it is a density whatever the draws.

        :param draws: of shape S + batch + event.
        :param event_dim: number of event dimensions.
        """
        xp = array_namespace(draws)
        loc = draws.mean(0)
        scale = xp.sqrt(xp.var(draws, axis=0, correction=1))
        scale = xp.where(scale > 0, scale, xp.ones_like(scale))
        count, dim = draws.shape[0], draws.shape[-1] if event_dim else 1
        if event_dim != 1 or count < DRAWS_PER_DIMENSION * dim:
            return cls(loc, scale, event_dim)
        u = xp.moveaxis((draws - loc) / scale, 0, -1)
        correlation = (u @ xp.matrix_transpose(u)) / (count - 1)
        ones = xp.ones_like(correlation)
        eye = xp.tril(ones) * xp.triu(ones)
        # Rounding of a decomposition grows with the size and with the largest eigenvalue.
        ridge = max(_RIDGE, dim**2 * float(xp.finfo(draws.dtype).eps))
        correlation = correlation * (1 - eye) + (1 + ridge) * eye
        # The moments say it if draws are not finite; a decomposition would raise.
        correlation = xp.where(xp.isfinite(correlation), correlation, eye)
        tril = scale[..., None] * xp.linalg.cholesky(correlation)
        return cls(loc, xp.linalg.diagonal(tril), event_dim, tril=tril)

    @classmethod
    def around(cls, loc: Array, scale: Array, event_dim: int) -> Self:
        """
        The one with known moments.

        :param loc: of shape batch + event.
        :param scale: of the same shape; or, for events of shape (D,), lower Cholesky factors of
            shape batch + (D, D), of which what is above the diagonal does not count.
        :param event_dim: number of event dimensions.
        :raises ValueError: if these do not fit.
        """
        xp, shape = array_namespace(loc), tuple(loc.shape)
        if scale.ndim <= len(shape):
            return cls(loc, xp.broadcast_to(scale, shape), event_dim)
        if event_dim != 1:
            raise ValueError("Cholesky factors are of events of one dimension")
        tril = xp.tril(xp.broadcast_to(scale, (*shape, shape[-1])))
        return cls(loc, xp.linalg.diagonal(tril), event_dim, tril=tril)

    def plug_in_regret(self, num_draws: int) -> float:
        """
        What moments of finitely many draws cost if they are taken as known, in nats.

        :param num_draws: their number.
        """
        dim = math.prod(self.loc.shape[self.loc.ndim - self.event_dim :])
        return (
            plug_in_regret(num_draws, dim)
            if self.tril is not None
            else (dim * plug_in_regret(num_draws, 1))
        )

    def where(self, counts: Array, kept: Any = None) -> Self:
        """
        The same, but the standard Gaussian for what does not count.

        :param counts: of a shape that broadcasts to batch + event.
        :param kept: which elements of the events count.
        """
        xp, tril = array_namespace(self.loc), self.tril
        if tril is not None:
            identity = xp.zeros_like(tril) + xp.eye(tril.shape[-1], dtype=tril.dtype)
            tril = xp.where(counts[..., None], tril, identity)
        loc = xp.where(counts, self.loc, xp.zeros_like(self.loc))
        scale = xp.where(counts, self.scale, xp.ones_like(self.scale))
        return replace(self, loc=loc, scale=scale, kept=kept, tril=tril)

    def standardise(self, value: Array) -> Array:
        """``value`` on the scale on which the critic sees it, in the shape of value."""
        if self.tril is None:
            return (value - self.loc) / self.scale
        # Once per datum, however many draws there are.
        whitening = array_namespace(value).linalg.inv(self.tril)
        return (whitening @ (value - self.loc)[..., None])[..., 0]

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
