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

    python examples/numpyro/zoo/delta_vae.py --output zoo-delta-vae
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import linen as nn
from jax import random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI
from parts import MLP, adam, draw, fit, mean_bound, standard_normal, weighted_bound
from studies.zoo import Settings, Trained, ZooData, main

from numpyro_spread import (
    GaussianNoise,
    LaplaceNoise,
    LearnedNoise,
    LowRankGaussianNoise,
    SpreadELBO,
    SpreadNoise,
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
        scales = jnp.full(data.num_pixels, scale)
        return learned(GaussianNoise(scales), constraint="trace", least=0.5)
    # Less noise in all directions, and more in those in which the digits vary most.
    images = data.train_images - data.train_images.mean(0)
    _, singular, directions = np.linalg.svd(images, full_matrices=False)
    deviations = singular[:NUM_DIRECTIONS] / math.sqrt(len(images))
    factor = 0.3 * deviations * directions[:NUM_DIRECTIONS].T
    return LowRankGaussianNoise(0.75 * scale, jnp.asarray(factor))


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    latent_dim, hidden_dim = settings.latent_dim, settings.hidden_dim
    decoder_net = nn.Sequential([MLP(hidden_dim, data.num_pixels), nn.sigmoid])
    encoder_net = MLP(hidden_dim, 2 * latent_dim)

    def model(x, num_images=0):
        decoder = flax_module("decoder", decoder_net, input_shape=(latent_dim,))
        with numpyro.plate("data", num_images if x is None else len(x)):
            z = numpyro.sample("z", standard_normal(latent_dim))
            numpyro.sample("x", dist.Delta(decoder(z), event_dim=1), obs=x)

    def guide(x):
        encoder = flax_module("encoder", encoder_net, input_shape=(data.num_pixels,))
        loc, log_scale = jnp.split(encoder(x), 2, -1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    keys = random.split(random.key(settings.seed), 5)
    fit_key, draw_key, bound_key, weights_key, noise_key = keys
    noise = noise_kernel(row, data, settings.noise_scale)
    loss, optim, kernel = SpreadELBO({"x": noise}), adam(settings), noise
    if isinstance(noise, LearnedNoise):
        optim = two_player(optim, None, noise=optim)
        guide = loss.register(model, guide)  # which carries the noise's params
    svi = SVI(model, guide, optim, loss)
    state, seconds = fit(fit_key, settings, svi, data.train_images)
    if isinstance(noise, LearnedNoise):
        kernel = noise.kernel(svi.get_params(state)["noise$x$params"])
    noisy = kernel(jnp.asarray(data.test_images), event_dim=1).sample(noise_key)
    spread_model = spread(model, {"x": kernel})
    weighted = weighted_bound(
        weights_key, svi, state, settings.num_weights, noisy, model=spread_model
    )
    return Trained(
        samples=draw(draw_key, svi, state, None, settings.num_samples),
        seconds=seconds,
        log_likelihood=mean_bound(bound_key, svi, state, data.test_images),
        importance_weighted=weighted.mean(),
    )


if __name__ == "__main__":
    main("numpyro", "delta_vae", train)
