# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The Gaussian that an adaptive contrast puts in the place of the prior, datum by datum."""

from __future__ import annotations

from dataclasses import replace

import torch

from spread_core.math.gaussian_density import GaussianDensity


class GaussianContrast(GaussianDensity):
    """The Gaussian, with draws: of a Student t if its moments are those of a few draws."""

    def detach(self) -> GaussianContrast:
        """The same, as a constant."""
        tril = None if self.tril is None else self.tril.detach()
        return replace(self, loc=self.loc.detach(), scale=self.scale.detach(), tril=tril)

    def restore(self, standardised: torch.Tensor) -> torch.Tensor:
        """The value whose standardised form this is, in the same shape."""
        if self.tril is None:
            return self.loc + self.scale * standardised
        return self.loc + (self.tril @ standardised[..., None])[..., 0]

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
