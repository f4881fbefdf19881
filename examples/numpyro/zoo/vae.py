# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
VAE: amortised inference
========================

A decoder p(x | z) of whole-number pixels and an encoder q(z | x), trained together by
``Trace_ELBO`` (Kingma, Welling 2014). The bound is reported, and the tighter one by importance
weights.

    python examples/numpyro/zoo/vae.py --output zoo-vae
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO
from parts import MLP, adam, draw_counts, fit, mean_bound, standard_normal, weighted_bound
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    latent_dim = settings.latent_dim
    decoder_net = MLP(settings.hidden_dim, data.num_pixels)
    encoder_net = MLP(settings.hidden_dim, 2 * latent_dim)

    def model(x, num_images=0):
        decoder = flax_module("decoder", decoder_net, input_shape=(latent_dim,))
        with numpyro.plate("data", num_images if x is None else len(x)):
            z = numpyro.sample("z", standard_normal(latent_dim))
            pixels = dist.Binomial(MAX_COUNT, logits=decoder(z)).to_event(1)
            numpyro.sample("x", pixels, obs=x)

    def guide(x):
        encoder = flax_module("encoder", encoder_net, input_shape=(data.num_pixels,))
        loc, log_scale = jnp.split(encoder(x / MAX_COUNT), 2, -1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    fit_key, draw_key, bound_key, weights_key = random.split(random.key(settings.seed), 4)
    svi = SVI(model, guide, adam(settings), Trace_ELBO())
    state, seconds = fit(fit_key, settings, svi, data.train_counts)
    test = data.test_counts
    weighted = weighted_bound(weights_key, svi, state, settings.num_weights, test)
    return Trained(
        samples=draw_counts(draw_key, svi, state, None, settings.num_samples),
        seconds=seconds,
        log_likelihood=mean_bound(bound_key, svi, state, test),
        importance_weighted=weighted.mean(),
    )


if __name__ == "__main__":
    main("numpyro", "vae", train)
