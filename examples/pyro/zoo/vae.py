# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
VAE: amortised inference
========================

A decoder p(x | z) of whole-number pixels and an encoder q(z | x), trained by ``Trace_ELBO``
(Kingma, Welling 2014). The bound is reported, and the tighter one by importance weights.

    python examples/pyro/zoo/vae.py --output zoo-vae
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from parts import adam, draw_counts, fit, mean_bound, mlp, standard_normal, start
from pyro.infer import SVI, Trace_ELBO
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main

from pyro_spread import importance_weighted_bound


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    latent_dim, hidden_dim = settings.latent_dim, settings.hidden_dim
    decoder = mlp(latent_dim, hidden_dim, data.num_pixels)
    encoder = mlp(data.num_pixels, hidden_dim, 2 * latent_dim)

    def model(x, num_images=0):
        pyro.module("decoder", decoder)
        with pyro.plate("data", num_images if x is None else len(x)):
            z = pyro.sample("z", standard_normal(latent_dim))
            pixels = dist.Binomial(MAX_COUNT, logits=decoder(z)).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x / MAX_COUNT).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    svi = SVI(model, guide, adam(settings), Trace_ELBO())
    seconds = fit(settings, svi, data.train_counts)
    test = torch.as_tensor(data.test_counts)
    weighted = importance_weighted_bound(model, guide, test, num_samples=settings.num_weights)
    return Trained(
        samples=draw_counts(model, None, settings.num_samples),
        seconds=seconds,
        log_likelihood=mean_bound(svi, data.test_counts),
        importance_weighted=weighted.values.mean(),
    )


if __name__ == "__main__":
    main("pyro", "vae", train)
