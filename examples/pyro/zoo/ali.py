# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
ALI / BiGAN: adversarially learned inference
============================================

A critic tells pairs (image, code of the encoder) from pairs (image that a code made, that code),
and generator and encoder make them alike (Dumoulin et al. 2017, Donahue et al. 2017). No density is
used of either. Noise on both sides and R1, as in ``js_pi.py``.

    python examples/pyro/zoo/ali.py --output zoo-ali
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from parts import adversaries, critic_net, draw, fit, mlp, standard_normal, start
from pyro.infer import SVI
from studies.gan_study import as_images, as_signed
from studies.zoo import Settings, Trained, ZooData, main
from torch import nn

from pyro_spread import R1, GaussianNoise, JointContrastELBO, JSPi, concat_sites

CRITIC_STEPS = 2


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    latent_dim, hidden_dim = settings.latent_dim, settings.hidden_dim
    generator = nn.Sequential(mlp(latent_dim, hidden_dim, data.num_pixels), nn.Tanh())
    encoder = mlp(data.num_pixels, hidden_dim, 2 * latent_dim)

    def model(x, num_images=0):
        pyro.module("generator", generator)
        with pyro.plate("data", num_images if x is None else len(x)):
            z = pyro.sample("z", standard_normal(latent_dim))
            pyro.sample("x", dist.Delta(generator(z), event_dim=1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    loss = JointContrastELBO(
        concat_sites(critic_net(settings), "x", "z"),
        JSPi(0.5),
        noise={"x": GaussianNoise(1.5 * settings.noise_scale)},
        regularizer=R1(2.0, every=4),
    )
    optim = adversaries(settings, CRITIC_STEPS)
    svi = SVI(model, loss.register(model, guide), optim, loss)
    updates = CRITIC_STEPS * settings.num_steps
    seconds = fit(settings, svi, as_signed(data.train_images), num_steps=updates)
    return Trained(as_images(draw(model, None, settings.num_samples)), seconds)


if __name__ == "__main__":
    main("pyro", "ali", train)
