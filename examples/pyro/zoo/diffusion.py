# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
r"""
Denoising diffusion: spread at many levels
==========================================

Spread the data with Gaussian noise of scale :math:`s_1 < \dots < s_T`, :math:`y_t = x + s_t
\epsilon`. Between two levels the noise is known in closed form,

.. math::

    q(y_{t-1} \mid y_t, x) = N(y_t + (1 - r_t)(x - y_t), \; (1 - r_t) s_{t-1}^2),
    \quad r_t = s_{t-1}^2 / s_t^2,

and the model p is the same with a denoiser's :math:`\hat x(y_t, t)` in place of x. The bound of the
chain is a sum over levels, each a KL of two Gaussians,

.. math:: \tfrac12 (s_{t-1}^{-2} - s_t^{-2}) |x - \hat x(y_t, t)|^2.

So DDPM's loss is a weighted sum of denoising terms (Ho et al. 2020; Kingma et al. 2021). Spread
divergence has the same terms: its KL falls with the noise at the rate :math:`\tfrac12 E|\nabla \log
\tilde p - \nabla \log \tilde q|^2` per unit of :math:`s^2` (de Bruijn), and by Tweedie's formula
that difference of scores is the denoiser's error over :math:`s^2`. A delta-VAE spreads once, at one
scale; a diffusion model adds up all scales, from one at which nothing of the data is left.

It is an ordinary model and guide under stock ``TraceMeanField_ELBO``, whose KLs are exact; the
levels are a plate, of which each step takes a few (``subsample_size``).

    python examples/pyro/zoo/diffusion.py --output zoo-diffusion
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from parts import adam, fit, mean_bound, mlp, start
from pyro.infer import SVI, TraceMeanField_ELBO
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main
from torch import nn

from pyro_spread import GaussianNoise

# From less than half the step between two levels of grey, to much more than the range of pixels.
SMALLEST_SCALE, LARGEST_SCALE = 0.02, 5.0
LEVELS_PER_STEP = 4
WIDTH = 2  # the only net of the system may be wider than those that come in pairs
NUM_FREQUENCIES = 8


class Denoiser(nn.Module):
    """Estimate the clean image: a weighted mean of the noisy image and a net's output."""

    def __init__(self, data: ZooData, hidden_dim: int) -> None:
        super().__init__()
        self.net = mlp(data.num_pixels + 2 * NUM_FREQUENCIES, hidden_dim, data.num_pixels)
        images = torch.as_tensor(data.train_images)
        self.register_buffer("mean", images.mean(0))
        self.register_buffer("deviation", images.std())
        self.register_buffer("frequencies", 2.0 ** torch.arange(NUM_FREQUENCIES))

    def forward(self, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        # Weights as in Karras et al. 2022 (arXiv:2206.00364): at every level the net's input and
        # what it has to give are of the size of one.
        total = (self.deviation**2 + scale**2).sqrt()
        angles = self.frequencies * scale.log() / 4
        centred = y - self.mean
        where = torch.cat([angles.sin(), angles.cos()], -1).expand(*y.shape[:-1], -1)
        output = self.net(torch.cat([centred / total, where], -1))
        kept = self.deviation**2 / total**2
        return self.mean + kept * centred + scale * self.deviation / total * output


class Diffusion:
    """Model and guide of the chain of noisy images, and its draws."""

    def __init__(self, data: ZooData, settings: Settings) -> None:
        self.data = data
        self.denoiser = Denoiser(data, WIDTH * settings.hidden_dim)
        ends = math.log(SMALLEST_SCALE), math.log(LARGEST_SCALE)
        self.scales = torch.linspace(*ends, settings.num_levels + 1).exp()
        self.batch_levels = min(LEVELS_PER_STEP, settings.num_levels)
        self.grey = torch.arange(NUM_LEVELS) / MAX_COUNT

    def below(self, y: torch.Tensor, clean: torch.Tensor, level: torch.Tensor) -> dist.Normal:
        """Distribution of y at the level below, given y and the clean image, or a guess of it."""
        lower, upper = self.scales[level - 1, None], self.scales[level, None]
        share = 1 - (lower / upper) ** 2
        return dist.Normal(y + share * (clean - y), share.sqrt() * lower).to_event(1)

    def top(self, num_images: int) -> dist.Normal:
        """Distribution of y at the highest level: as if all images were the mean image."""
        mean = self.denoiser.mean.expand(num_images, -1)
        spread_out = (self.scales[-1] ** 2 + self.denoiser.deviation**2).sqrt()
        return dist.Normal(mean, spread_out).to_event(1)

    def counts(self, y: torch.Tensor) -> dist.Categorical:
        """
        Distribution of the whole-number pixels given y at the lowest level: nearly always the
        nearest.
        """
        distance = (y.unsqueeze(-1) - self.grey) / self.scales[0]
        return dist.Categorical(logits=-0.5 * distance**2).to_event(1)

    def model(self, x, every_level=False):
        pyro.module("denoiser", self.denoiser)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y_top", self.top(len(x)))
            y = pyro.sample("y_0", self.lowest(x))
            pyro.sample("x", self.counts(y), obs=x)
            with self.levels(every_level) as index:
                level = index.unsqueeze(-1) + 1
                y = pyro.sample("y", self.noisy(x, level))
                guess = self.denoiser(y, self.scales[level, None])
                pyro.sample("y_below", self.below(y, guess, level))

    def guide(self, x, every_level=False):
        clean = x / MAX_COUNT
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y_top", GaussianNoise(self.scales[-1])(clean, event_dim=1))
            pyro.sample("y_0", self.lowest(x))
            with self.levels(every_level) as index:
                level = index.unsqueeze(-1) + 1
                y = pyro.sample("y", self.noisy(x, level))
                pyro.sample("y_below", self.below(y, clean, level))

    def levels(self, every_level: bool) -> pyro.plate:
        size = len(self.scales) - 1
        return pyro.plate(
            "levels", size, subsample_size=size if every_level else self.batch_levels, dim=-2
        )

    # Two auxiliary draws, the same in model and guide: their KL is zero. They stand for the upper
    # end of each term, which the chain reaches with just this distribution.
    def lowest(self, x: torch.Tensor) -> dist.Normal:
        return GaussianNoise(self.scales[0])(x / MAX_COUNT, event_dim=1)

    def noisy(self, x: torch.Tensor, level: torch.Tensor) -> dist.Normal:
        clean = (x / MAX_COUNT).expand(len(level), *x.shape)
        return GaussianNoise(self.scales[level, None])(clean, event_dim=1)

    @torch.no_grad()
    def sample(self, num_images: int) -> np.ndarray:
        """From the highest level down: at each the denoiser's guess, and the noise that is left."""
        y = self.top(num_images).sample()
        for level in range(len(self.scales) - 1, 0, -1):
            at = torch.full((num_images,), level)
            y = self.below(y, self.denoiser(y, self.scales[at, None]), at).sample()
        return self.counts(y).sample().cpu().numpy()


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    diffusion = Diffusion(data, settings)
    svi = SVI(
        diffusion.model,
        diffusion.guide,
        adam(settings, weight_decay=1e-2),
        TraceMeanField_ELBO(),
    )
    seconds = fit(settings, svi, data.train_counts)
    bound = mean_bound(svi, data.test_counts, num_draws=3, every_level=True)
    return Trained(
        samples=diffusion.sample(settings.num_samples) / MAX_COUNT,
        seconds=seconds,
        log_likelihood=bound,
    )


if __name__ == "__main__":
    main("pyro", "diffusion", train)
