# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Deterministic ICA
=================

x = A z + b with fewer Laplace sources z than pixels and no noise at the output: EM stands still
there, ``SpreadELBO`` trains it (Zhang et al. 2020, section 6.1). ``examples/numpyro/ica.py``
measures how well A is found; here the same model is one more generator of digits, a linear one. Its
outputs leave [0, 1] and are clipped.

    python examples/numpyro/zoo/deterministic_ica.py --output zoo-deterministic-ica
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI
from parts import MLP, Dense, adam, draw, fit, mean_bound, weighted_bound
from studies.zoo import Settings, Trained, ZooData, main

from numpyro_spread import GaussianNoise, SpreadELBO, spread


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    num_sources = 2 * settings.latent_dim
    mixing_net = Dense(data.num_pixels)
    encoder_net = MLP(settings.hidden_dim, 2 * num_sources)

    def model(x, num_images=0):
        mixing = flax_module("mixing", mixing_net, input_shape=(num_sources,))
        with numpyro.plate("data", num_images if x is None else len(x)):
            sources = dist.Laplace(jnp.zeros(num_sources), 0.5**0.5)  # of variance one
            z = numpyro.sample("z", sources.to_event(1))
            numpyro.sample("x", dist.Delta(mixing(z), event_dim=1), obs=x)

    def guide(x):
        encoder = flax_module("encoder", encoder_net, input_shape=(data.num_pixels,))
        loc, log_scale = jnp.split(encoder(x), 2, -1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    keys = random.split(random.key(settings.seed), 5)
    fit_key, draw_key, bound_key, weights_key, noise_key = keys
    noise = GaussianNoise(settings.noise_scale)
    svi = SVI(model, guide, adam(settings), SpreadELBO({"x": noise}))
    state, seconds = fit(fit_key, settings, svi, data.train_images)
    noisy = noise(jnp.asarray(data.test_images), event_dim=1).sample(noise_key)
    spread_model = spread(model, {"x": noise})
    weighted = weighted_bound(
        weights_key, svi, state, settings.num_weights, noisy, model=spread_model
    )
    return Trained(
        samples=draw(draw_key, svi, state, None, settings.num_samples).clip(0.0, 1.0),
        seconds=seconds,
        log_likelihood=mean_bound(bound_key, svi, state, data.test_images),
        importance_weighted=weighted.mean(),
    )


if __name__ == "__main__":
    main("numpyro", "deterministic_ica", train)
