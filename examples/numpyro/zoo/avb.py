# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
AVB: adversarial variational Bayes
==================================

The decoder of the VAE with an encoder that has no density: it maps the image and noise to codes,
and a critic stands in for its density (Mescheder, Nowozin, Geiger 2017), here by the adaptive
contrast. What the loss reports is an estimate and no bound, so that the table has another number:
after training, a Gaussian encoder is fitted to the finished decoder, and *its* bound is reported.

    python examples/numpyro/zoo/avb.py --output zoo-avb
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import linen as nn
from jax import random
from numpyro import handlers
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO
from parts import (
    MLP,
    Dense,
    adam,
    critic_net,
    draw_counts,
    fit,
    mean_bound,
    standard_normal,
    weighted_bound,
)
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main

from numpyro_spread import ImplicitDistribution, PriorContrastELBO, concat_sites, two_player

CRITIC_STEPS = 2
# Of the row's rate. A guide that moves as fast as its critic is reported better than it is, and the
# decoder learns from that report.
PACE, CRITIC_PACE = 0.06, 0.5


class Bend(nn.Module):
    """Noise to codes, in standard deviations of the Gaussian ones; Gaussian at first."""

    hidden_dim: int
    latent_dim: int

    @nn.compact
    def __call__(self, image, eps):
        image = jnp.broadcast_to(image, (*eps.shape[:-1], image.shape[-1]))
        x = jnp.concatenate([image, eps], -1)
        for _ in range(2):
            x = nn.relu(Dense(self.hidden_dim)(x))
        return eps + nn.Dense(self.latent_dim, kernel_init=nn.initializers.zeros)(x)


def bent(bend, loc, scale, image, eps):
    return loc + scale * bend(image, eps)


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    latent_dim, hidden_dim = settings.latent_dim, settings.hidden_dim
    decoder_net = MLP(hidden_dim, data.num_pixels)
    encoder_net = MLP(hidden_dim, 2 * latent_dim)
    bend_net = Bend(hidden_dim, latent_dim)

    def model(x, num_images=0):
        decoder = flax_module("decoder", decoder_net, input_shape=(latent_dim,))
        with numpyro.plate("data", num_images if x is None else len(x)):
            z = numpyro.sample("z", standard_normal(latent_dim))
            pixels = dist.Binomial(MAX_COUNT, logits=decoder(z)).to_event(1)
            # The critic looks at the argument, in [0, 1]: counts up to 16 would drown the codes.
            numpyro.sample("x", pixels, obs=None if x is None else MAX_COUNT * x)

    def encode(x):
        encoder = flax_module("encoder", encoder_net, input_shape=(data.num_pixels,))
        loc, log_scale = jnp.split(encoder(x), 2, -1)
        return loc, jnp.exp(log_scale)

    def gaussian_guide(x):
        loc, scale = encode(x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def implicit_guide(x):
        loc, scale = encode(x)
        noise = standard_normal(latent_dim)
        bend = flax_module("bend", bend_net, x[0], jnp.zeros(latent_dim))
        codes = functools.partial(bent, bend, loc, scale, x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", ImplicitDistribution(codes, noise, event_shape=(latent_dim,)))

    keys = random.split(random.key(settings.seed), 6)
    first_key, fit_key, encoder_key, draw_key, bound_key, weights_key = keys
    # Half of the steps as a VAE: the critic finds an encoder that has left the prior already.
    first = max(1, settings.num_steps // 2)
    last = settings.num_steps - first
    svi = SVI(model, gaussian_guide, adam(settings), Trace_ELBO())
    state, seconds = fit(first_key, settings, svi, data.train_images, num_steps=first)
    start = svi.get_params(state)

    loss = PriorContrastELBO(concat_sites(critic_net(settings), "x", "z"))
    guide = loss.register(model, implicit_guide)
    updates = CRITIC_STEPS * last
    optim = two_player(
        adam(settings, pace=PACE, num_steps=last, b1=0.5),
        adam(settings, pace=CRITIC_PACE, num_steps=updates, b1=0.5),
        CRITIC_STEPS,
    )
    svi = SVI(model, guide, optim, loss)
    state, more = fit(
        fit_key, settings, svi, data.train_images, num_steps=updates, init_params=start
    )
    samples = draw_counts(draw_key, svi, state, None, settings.num_samples)

    # The decoder as it is: its params are no longer there to be trained.
    finished = {"decoder$params": svi.get_params(state)["decoder$params"]}
    judged = handlers.block(handlers.substitute(model, data=finished), hide=list(finished))
    svi = SVI(judged, gaussian_guide, adam(settings), Trace_ELBO())
    state, _ = fit(encoder_key, settings, svi, data.train_images, init_params=start)
    test = data.test_images
    weighted = weighted_bound(weights_key, svi, state, settings.num_weights, test)
    return Trained(
        samples=samples,
        seconds=seconds + more,
        log_likelihood=mean_bound(bound_key, svi, state, test),
        importance_weighted=weighted.mean(),
    )


if __name__ == "__main__":
    main("numpyro", "avb", train)
