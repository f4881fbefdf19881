# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
LFVI: likelihood-free variational inference
===========================================

A simulator in place of a likelihood: codes and the simulator's own noise make an image, and nobody
can score it. The guide has no density either. ``JointContrastELBO`` takes KL from the guide's pairs
(x, z) to the simulator's, minus the ELBO up to a constant, from a critic (Tran, Ranganath, Blei
2017; Huszár 2017). Noise on both sides and R1, as in ``js_pi.py``.

    python examples/pyro/zoo/lfvi.py --output zoo-lfvi
"""

from __future__ import annotations

import pyro
import torch
from parts import adversaries, critic_net, draw, fit, mlp, standard_normal, start
from pyro.infer import SVI
from studies.gan_study import as_images, as_signed
from studies.zoo import Settings, Trained, ZooData, main
from torch import nn

from pyro_spread import (
    R1,
    GaussianNoise,
    ImplicitDistribution,
    JointContrastELBO,
    ReverseKL,
    concat_sites,
)

CRITIC_STEPS = 2


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    latent_dim, hidden_dim, size = settings.latent_dim, settings.hidden_dim, data.num_pixels
    simulator = nn.Sequential(mlp(2 * latent_dim, hidden_dim, size), nn.Tanh())
    encoder = mlp(size + latent_dim, hidden_dim, latent_dim)
    noise = standard_normal(latent_dim)

    def model(x, num_images=0):
        pyro.module("simulator", simulator)
        with pyro.plate("data", num_images if x is None else len(x)):
            z = pyro.sample("z", standard_normal(latent_dim))

            def simulate(eps):
                return simulator(torch.cat([z.expand(eps.shape), eps], -1))

            pyro.sample("x", ImplicitDistribution(simulate, noise, event_shape=(size,)), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)

        def codes(eps):  # the prior's at first: the critic finds pairs that it cannot tell at once
            return eps + encoder(torch.cat([x.expand(*eps.shape[:-1], -1), eps], -1))

        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(codes, noise, event_shape=(latent_dim,)))

    loss = JointContrastELBO(
        concat_sites(critic_net(settings), "x", "z"),
        ReverseKL(),
        noise={"x": GaussianNoise(1.5 * settings.noise_scale)},
        regularizer=R1(2.0, every=4),
    )
    optim = adversaries(settings, CRITIC_STEPS)
    svi = SVI(model, loss.register(model, guide), optim, loss)
    updates = CRITIC_STEPS * settings.num_steps
    seconds = fit(settings, svi, as_signed(data.train_images), num_steps=updates)
    return Trained(as_images(draw(model, None, settings.num_samples)), seconds)


if __name__ == "__main__":
    main("pyro", "lfvi", train)
