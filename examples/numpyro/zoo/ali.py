# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
ALI / BiGAN: adversarially learned inference
============================================

A critic tells pairs (image, code of the encoder) from pairs (image that a code made, that code),
and generator and encoder make them alike (Dumoulin et al. 2017, Donahue et al. 2017). No density is
used of either. Noise on both sides and R1, as in ``js_pi.py``.

    python examples/numpyro/zoo/ali.py --output zoo-ali
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import linen as nn
from jax import random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI
from parts import MLP, adversaries, critic_net, draw, fit, standard_normal
from studies.gan_study import as_images, as_signed
from studies.zoo import Settings, Trained, ZooData, main

from numpyro_spread import R1, GaussianNoise, JointContrastELBO, JSPi, concat_sites

CRITIC_STEPS = 2


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    latent_dim, hidden_dim = settings.latent_dim, settings.hidden_dim
    generator_net = nn.Sequential([MLP(hidden_dim, data.num_pixels), nn.tanh])
    encoder_net = MLP(hidden_dim, 2 * latent_dim)

    def model(x, num_images=0):
        generator = flax_module("generator", generator_net, input_shape=(latent_dim,))
        with numpyro.plate("data", num_images if x is None else len(x)):
            z = numpyro.sample("z", standard_normal(latent_dim))
            numpyro.sample("x", dist.Delta(generator(z), event_dim=1), obs=x)

    def guide(x):
        encoder = flax_module("encoder", encoder_net, input_shape=(data.num_pixels,))
        loc, log_scale = jnp.split(encoder(x), 2, -1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    loss = JointContrastELBO(
        concat_sites(critic_net(settings), "x", "z"),
        JSPi(0.5),
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
    main("numpyro", "ali", train)
