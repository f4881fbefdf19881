# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
r"""
Conditional VAE
===============

A VAE whose decoder and encoder are conditional on the label (Sohn, Lee, Yan 2015): it bounds log
p(x | y). To compare with unconditional models, the bound is summed over labels,
:math:`\log \sum_y p(y) w_y`, with :math:`w_y = p(x, z \mid y) / q(z \mid x, y)`: a bound of log
p(x), since the expectation of each weight is p(x | y).

    python examples/numpyro/zoo/conditional_vae.py --output zoo-conditional-vae
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO
from parts import MLP, adam, draw_counts, fit, standard_normal, weighted_bound
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main, mixture_bound

NUM_DRAWS = 10


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    latent_dim, num_classes = settings.latent_dim, data.num_classes
    decoder_net = MLP(settings.hidden_dim, data.num_pixels)
    encoder_net = MLP(settings.hidden_dim, 2 * latent_dim)

    def model(x, label):
        num_inputs = latent_dim + num_classes
        decoder = flax_module("decoder", decoder_net, input_shape=(num_inputs,))
        with numpyro.plate("data", len(label)):
            z = numpyro.sample("z", standard_normal(latent_dim))
            logits = decoder(jnp.concatenate([z, label], -1))
            numpyro.sample("x", dist.Binomial(MAX_COUNT, logits=logits).to_event(1), obs=x)

    def guide(x, label):
        num_inputs = data.num_pixels + num_classes
        encoder = flax_module("encoder", encoder_net, input_shape=(num_inputs,))
        outputs = encoder(jnp.concatenate([x / MAX_COUNT, label], -1))
        loc, log_scale = jnp.split(outputs, 2, -1)
        with numpyro.plate("data", len(label)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    fit_key, draw_key, bound_key, weights_key = random.split(random.key(settings.seed), 4)
    svi = SVI(model, guide, adam(settings), Trace_ELBO())
    one_hot = np.eye(num_classes, dtype=np.float32)
    training = data.train_counts, one_hot[data.train_labels]
    state, seconds = fit(fit_key, settings, svi, *training)

    def bound(rng_key, num_samples, num_draws):
        """Every held-out image under every label, so many times, all in one batch."""
        test = np.tile(np.repeat(data.test_counts, num_classes, 0), (num_draws, 1))
        labels = np.tile(one_hot, (len(test) // num_classes, 1))
        values = weighted_bound(rng_key, svi, state, num_samples, test, labels)
        return mixture_bound(values.reshape(-1, num_classes), data.label_shares).mean()

    labels = one_hot[data.label_draws(settings.num_samples, settings.seed)]
    return Trained(
        samples=draw_counts(draw_key, svi, state, None, labels),
        seconds=seconds,
        log_likelihood=bound(bound_key, 1, NUM_DRAWS),
        importance_weighted=bound(weights_key, settings.num_weights, 1),
    )


if __name__ == "__main__":
    main("numpyro", "conditional_vae", train)
