# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
AVB: adversarial variational Bayes
==================================

The decoder of the VAE with an encoder that has no density: it maps the image and noise to codes,
and a critic stands in for its density (Mescheder, Nowozin, Geiger 2017), here by the adaptive
contrast. What the loss reports is an estimate and no bound, so that the table has another number:
after training, a Gaussian encoder is fitted to the finished decoder, and *its* bound is reported.

    python examples/pyro/zoo/avb.py --output zoo-avb
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from parts import (
    adam,
    critic_net,
    draw_counts,
    fit,
    mean_bound,
    mlp,
    standard_normal,
    start,
)
from pyro.infer import SVI, Trace_ELBO
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main
from torch import nn

from pyro_spread import (
    ImplicitDistribution,
    PriorContrastELBO,
    concat_sites,
    importance_weighted_bound,
    two_player,
)

CRITIC_STEPS = 2
# Of the row's rate. A guide that moves as fast as its critic is reported better than it is, and the
# decoder learns from that report.
PACE, CRITIC_PACE = 0.06, 0.5


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    latent_dim, hidden_dim = settings.latent_dim, settings.hidden_dim
    decoder = mlp(latent_dim, hidden_dim, data.num_pixels)
    encoder = mlp(data.num_pixels, hidden_dim, 2 * latent_dim)
    bend = mlp(data.num_pixels + latent_dim, hidden_dim, latent_dim)
    nn.init.zeros_(bend[-1].weight)  # Gaussian at first

    def model(x, num_images=0):
        pyro.module("decoder", decoder)
        with pyro.plate("data", num_images if x is None else len(x)):
            z = pyro.sample("z", standard_normal(latent_dim))
            pixels = dist.Binomial(MAX_COUNT, logits=decoder(z)).to_event(1)
            # The critic looks at the argument, in [0, 1]: counts up to 16 would drown the codes.
            pyro.sample("x", pixels, obs=None if x is None else MAX_COUNT * x)

    def encode(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        return loc, log_scale.exp()

    def gaussian_guide(x):
        loc, scale = encode(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def implicit_guide(x):
        pyro.module("bend", bend)
        loc, scale = encode(x)

        def codes(eps):
            image = x.expand(*eps.shape[:-1], -1)
            return loc + scale * (eps + bend(torch.cat([image, eps], -1)))

        with pyro.plate("data", len(x)):
            noise = standard_normal(latent_dim)
            pyro.sample("z", ImplicitDistribution(codes, noise, event_shape=(latent_dim,)))

    # Half of the steps as a VAE: the critic finds an encoder that has left the prior already.
    first = max(1, settings.num_steps // 2)
    svi = SVI(model, gaussian_guide, adam(settings), Trace_ELBO())
    seconds = fit(settings, svi, data.train_images, num_steps=first)

    loss = PriorContrastELBO(concat_sites(critic_net(settings), "x", "z"))
    guide = loss.register(model, implicit_guide)
    updates = CRITIC_STEPS * (settings.num_steps - first)
    # The rates of both players go by updates.
    optim = two_player(
        adam(settings, pace=PACE, num_steps=updates, b1=0.5),
        adam(settings, pace=CRITIC_PACE, num_steps=updates, b1=0.5),
        CRITIC_STEPS,
    )
    svi = SVI(model, guide, optim, loss)
    seconds += fit(settings, svi, data.train_images, num_steps=updates)
    samples = draw_counts(model, None, settings.num_samples)

    decoder.requires_grad_(False).eval()
    svi = SVI(model, gaussian_guide, adam(settings), Trace_ELBO())
    fit(settings, svi, data.train_images)
    weighted = importance_weighted_bound(
        model, gaussian_guide, torch.as_tensor(data.test_images), num_samples=settings.num_weights
    )
    return Trained(
        samples=samples,
        seconds=seconds,
        log_likelihood=mean_bound(svi, data.test_images),
        importance_weighted=weighted.values.mean(),
    )


if __name__ == "__main__":
    main("pyro", "avb", train)
