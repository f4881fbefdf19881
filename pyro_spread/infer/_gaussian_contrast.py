# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The Gaussian that an adaptive contrast puts in the place of the prior, datum by datum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

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
    """

    loc: torch.Tensor
    scale: torch.Tensor
    event_dim: int
    num_draws: int | None = None

    @staticmethod
    def from_draws(draws: torch.Tensor, event_dim: int) -> GaussianContrast:
        """
        The one with the moments of ``draws``.

        :param draws: of shape S + batch + event.
        :param event_dim: number of event dimensions.
        """
        variance, loc = torch.var_mean(draws, 0)
        return GaussianContrast(loc, variance.sqrt(), event_dim, draws.shape[0])

    def where(self, kept: torch.Tensor) -> GaussianContrast:
        """
        The same, but the standard Gaussian for what does not count.

        :param kept: of the batch shape.
        """
        kept = kept.reshape([*kept.shape, *[1] * self.event_dim])
        loc = torch.where(kept, self.loc, torch.zeros_like(self.loc))
        scale = torch.where(kept, self.scale, torch.ones_like(self.scale))
        return replace(self, loc=loc, scale=scale)

    def standardise(self, value: torch.Tensor) -> torch.Tensor:
        """``value`` on the scale on which the critic sees it, in the shape of value."""
        return (value - self.loc) / self.scale

    def restore(self, standardised: torch.Tensor) -> torch.Tensor:
        """The value whose standardised form this is, in the same shape."""
        return self.loc + self.scale * standardised

    def draw(self, sample_shape: tuple[int, ...] = ()) -> torch.Tensor:
        """Standardised draws of shape sample + batch + event."""
        shape = torch.Size(sample_shape) + self.loc.shape
        normal = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        if self.num_draws is None:
            return normal
        nu = self.num_draws - 1
        half = torch.full(shape, nu / 2, dtype=normal.dtype, device=normal.device)
        chi2 = 2 * torch._standard_gamma(half)
        return normal * ((1 + 1 / self.num_draws) * nu / chi2).sqrt()

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """
        Log density in nats, summed over the event, with the expected regret taken off.

        :param value: draws of shape (sample +) batch + event, not standardised.
        """
        u = self.standardise(value)
        if self.num_draws is None:
            log_density = -0.5 * (u.square() + _LOG_2PI)
        else:
            nu, spread = self.num_draws - 1, 1 + 1 / self.num_draws
            # The scatter of the mean blurs the density, whose slope is on average lower by this.
            u = u.detach() + spread * (u - u.detach())
            constant = (
                math.lgamma((nu + 1) / 2)
                - math.lgamma(nu / 2)
                - 0.5 * math.log(nu * math.pi * spread)
                + predictive_regret(self.num_draws)
            )
            log_density = constant - (nu + 1) / 2 * torch.log1p(u.square() / (nu * spread))
        log_density = log_density - self.scale.log()
        return (
            log_density.flatten(log_density.dim() - self.event_dim).sum(-1)
            if self.event_dim
            else log_density
        )
