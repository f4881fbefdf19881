# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
r"""
Conditional VAE
===============

A VAE whose decoder and encoder are conditional on the label (Sohn, Lee, Yan 2015): it bounds log
p(x | y). To compare with unconditional models, the bound is summed over labels,
:math:`\log \sum_y p(y) w_y`, with :math:`w_y = p(x, z \mid y) / q(z \mid x, y)`: a bound of log
p(x), since the expectation of each weight is p(x | y).

    python examples/pyro/zoo/conditional_vae.py --output zoo-conditional-vae
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from parts import adam, draw_counts, fit, mlp, standard_normal, start
from pyro.infer import SVI, Trace_ELBO
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main, mixture_bound

from pyro_spread import importance_weighted_bound


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    latent_dim, hidden_dim = settings.latent_dim, settings.hidden_dim
    decoder = mlp(latent_dim + data.num_classes, hidden_dim, data.num_pixels)
    encoder = mlp(data.num_pixels + data.num_classes, hidden_dim, 2 * latent_dim)

    def model(x, label):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(label)):
            z = pyro.sample("z", standard_normal(latent_dim))
            logits = decoder(torch.cat([z, label], -1))
            pyro.sample("x", dist.Binomial(MAX_COUNT, logits=logits).to_event(1), obs=x)

    def guide(x, label):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(torch.cat([x / MAX_COUNT, label], -1)).chunk(2, -1)
        with pyro.plate("data", len(label)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    svi = SVI(model, guide, adam(settings), Trace_ELBO())
    one_hot = torch.eye(data.num_classes)
    seconds = fit(settings, svi, data.train_counts, one_hot[data.train_labels])
    test = torch.as_tensor(data.test_counts)

    def bound(num_samples):
        given_labels = [
            importance_weighted_bound(
                model, guide, test, label.expand(len(test), -1), num_samples=num_samples
            ).values
            for label in one_hot
        ]
        return mixture_bound(np.stack(given_labels, -1), data.label_shares).mean()

    labels = data.label_draws(settings.num_samples, settings.seed)
    return Trained(
        samples=draw_counts(model, None, one_hot[labels]),
        seconds=seconds,
        log_likelihood=np.mean([bound(1) for _ in range(10)]),
        importance_weighted=bound(settings.num_weights),
    )


if __name__ == "__main__":
    main("pyro", "conditional_vae", train)
