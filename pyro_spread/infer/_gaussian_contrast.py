# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The Gaussian that an adaptive contrast puts in the place of the prior, datum by datum."""

from __future__ import annotations

from dataclasses import replace

import torch

from spread_core.math.gaussian_density import GaussianDensity


class GaussianContrast(GaussianDensity):
    """The Gaussian, with draws: of a Student t if its moments are those of a few draws."""

    def where(self, kept: torch.Tensor) -> GaussianContrast:
        """
        The same, but the standard Gaussian for what does not count.

        :param kept: of the batch shape.
        """
        kept = kept.reshape([*kept.shape, *[1] * self.event_dim])
        loc = torch.where(kept, self.loc, torch.zeros_like(self.loc))
        scale = torch.where(kept, self.scale, torch.ones_like(self.scale))
        return replace(self, loc=loc, scale=scale)

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
