# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
LFVI: likelihood-free variational inference
===========================================

A simulator in place of a likelihood: codes and the simulator's own noise make an image, and nobody
can score it. The guide has no density either. ``JointContrastELBO`` takes KL from the guide's pairs
(x, z) to the simulator's, minus the ELBO up to a constant, from a critic (Tran, Ranganath, Blei
2017; Huszár 2017). Noise on both sides and R1, as in ``js_pi.py``.

    python examples/numpyro/zoo/lfvi.py --output zoo-lfvi
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpyro
from flax import linen as nn
from jax import random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI
from parts import MLP, adversaries, critic_net, draw, fit, standard_normal
from studies.gan_study import as_images, as_signed
from studies.zoo import Settings, Trained, ZooData, main

from numpyro_spread import (
    R1,
    GaussianNoise,
    ImplicitDistribution,
    JointContrastELBO,
    ReverseKL,
    concat_sites,
)

CRITIC_STEPS = 2


def with_noise(net, inputs, eps):
    """The net, applied to its inputs and its own noise."""
    inputs = jnp.broadcast_to(inputs, (*eps.shape[:-1], inputs.shape[-1]))
    return net(jnp.concatenate([inputs, eps], -1))


def codes_of(net, x, eps):
    """The prior's at first: the critic finds pairs that it cannot tell at once."""
    return eps + with_noise(net, x, eps)


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    latent_dim, hidden_dim, size = settings.latent_dim, settings.hidden_dim, data.num_pixels
    simulator_net = nn.Sequential([MLP(hidden_dim, size), nn.tanh])
    encoder_net = MLP(hidden_dim, latent_dim)
    noise = standard_normal(latent_dim)

    def model(x, num_images=0):
        simulator = flax_module("simulator", simulator_net, input_shape=(2 * latent_dim,))
        with numpyro.plate("data", num_images if x is None else len(x)):
            z = numpyro.sample("z", standard_normal(latent_dim))
            simulate = functools.partial(with_noise, simulator, z)
            numpyro.sample("x", ImplicitDistribution(simulate, noise, event_shape=(size,)), obs=x)

    def guide(x):
        encoder = flax_module("encoder", encoder_net, input_shape=(size + latent_dim,))
        codes = functools.partial(codes_of, encoder, x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", ImplicitDistribution(codes, noise, event_shape=(latent_dim,)))

    loss = JointContrastELBO(
        concat_sites(critic_net(settings), "x", "z"),
        ReverseKL(),
        noise={"x": GaussianNoise(1.5 * settings.noise_scale)},
        regularizer=R1(2.0, every=4),
    )
    optim = adversaries(settings, CRITIC_STEPS)
    svi = SVI(model, loss.register(model, guide), optim, loss)
    updates = CRITIC_STEPS * settings.num_steps
    fit_key, draw_key = random.split(random.key(settings.seed))
    signed = as_signed(data.train_images)
    state, seconds = fit(fit_key, settings, svi, signed, num_steps=updates)
    return Trained(as_images(draw(draw_key, svi, state, None, settings.num_samples)), seconds)


if __name__ == "__main__":
    main("numpyro", "lfvi", train)
