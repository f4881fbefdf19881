# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Delta-VAE: a deterministic decoder under four kinds of noise
============================================================

x = g(z) exactly, so that the likelihood is zero almost everywhere; ``SpreadELBO`` compares data and
model after noise on both (Zhang et al. 2020). The reported bound is on noisy images and moves with
the noise: it compares with no other row. Samples are clean. In the last row the variance
of the noise at each pixel is learned, by an optimiser of its own, to raise the divergence that the
model lowers; the sum of the variances is fixed, and half of each.

    python examples/pyro/zoo/delta_vae.py --output zoo-delta-vae
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from parts import adam, draw, fit, mean_bound, mlp, standard_normal, start
from pyro.infer import SVI
from studies.zoo import Settings, Trained, ZooData, main
from torch import nn

from pyro_spread import (
    GaussianNoise,
    LaplaceNoise,
    LearnedNoise,
    LowRankGaussianNoise,
    SpreadELBO,
    SpreadNoise,
    importance_weighted_bound,
    learned,
    spread,
    two_player,
)

NUM_DIRECTIONS = 8


def noise_kernel(row: str, data: ZooData, scale: float) -> SpreadNoise | LearnedNoise:
    """Three kernels, the first two of the same variance, and one to begin with."""
    if row == "delta-vae-gaussian":
        return GaussianNoise(scale)
    if row == "delta-vae-laplace":
        return LaplaceNoise(scale / math.sqrt(2))
    if row == "delta-vae-learned":
        scales = torch.full((data.num_pixels,), scale)
        return learned(GaussianNoise(scales), constraint="trace", least=0.5)
    # Less noise in all directions, and more in those in which the digits vary most.
    images = data.train_images - data.train_images.mean(0)
    _, singular, directions = np.linalg.svd(images, full_matrices=False)
    deviations = singular[:NUM_DIRECTIONS] / math.sqrt(len(images))
    factor = 0.3 * deviations * directions[:NUM_DIRECTIONS].T
    return LowRankGaussianNoise(0.75 * scale, torch.as_tensor(factor))


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    latent_dim, hidden_dim = settings.latent_dim, settings.hidden_dim
    decoder = nn.Sequential(mlp(latent_dim, hidden_dim, data.num_pixels), nn.Sigmoid())
    encoder = mlp(data.num_pixels, hidden_dim, 2 * latent_dim)

    def model(x, num_images=0):
        pyro.module("decoder", decoder)
        with pyro.plate("data", num_images if x is None else len(x)):
            z = pyro.sample("z", standard_normal(latent_dim))
            pyro.sample("x", dist.Delta(decoder(z), event_dim=1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    noise = noise_kernel(row, data, settings.noise_scale)
    optim = adam(settings)
    if isinstance(noise, LearnedNoise):
        optim = two_player(optim, None, noise=adam(settings))
    svi = SVI(model, guide, optim, SpreadELBO({"x": noise}))
    seconds = fit(settings, svi, data.train_images)
    kernel = noise.kernel() if isinstance(noise, LearnedNoise) else noise
    noisy = kernel(torch.as_tensor(data.test_images), event_dim=1).sample()
    weighted = importance_weighted_bound(
        spread(model, {"x": kernel}), guide, noisy, num_samples=settings.num_weights
    )
    return Trained(
        samples=draw(model, None, settings.num_samples),
        seconds=seconds,
        log_likelihood=mean_bound(svi, data.test_images),
        importance_weighted=weighted.values.mean(),
    )


if __name__ == "__main__":
    main("pyro", "delta_vae", train)
