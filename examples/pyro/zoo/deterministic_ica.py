# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Deterministic ICA
=================

x = A z + b with fewer Laplace sources z than pixels and no noise at the output: EM stands still
there, ``SpreadELBO`` trains it (Zhang et al. 2020, section 6.1). ``examples/pyro/ica.py`` measures
how well A is found; here the same model is one more generator of digits, a linear one. Its outputs
leave [0, 1] and are clipped.

    python examples/pyro/zoo/deterministic_ica.py --output zoo-deterministic-ica
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from parts import adam, draw, fit, mean_bound, mlp, start
from pyro.infer import SVI
from studies.zoo import Settings, Trained, ZooData, main
from torch import nn

from pyro_spread import GaussianNoise, SpreadELBO, importance_weighted_bound, spread


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    num_sources = 2 * settings.latent_dim
    mixing = nn.Linear(num_sources, data.num_pixels)
    encoder = mlp(data.num_pixels, settings.hidden_dim, 2 * num_sources)

    def model(x, num_images=0):
        pyro.module("mixing", mixing)
        with pyro.plate("data", num_images if x is None else len(x)):
            sources = dist.Laplace(torch.zeros(num_sources), 0.5**0.5)  # of variance one
            z = pyro.sample("z", sources.to_event(1))
            pyro.sample("x", dist.Delta(mixing(z), event_dim=1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    noise = GaussianNoise(settings.noise_scale)
    svi = SVI(model, guide, adam(settings), SpreadELBO({"x": noise}))
    seconds = fit(settings, svi, data.train_images)
    noisy = noise(torch.as_tensor(data.test_images), event_dim=1).sample()
    weighted = importance_weighted_bound(
        spread(model, {"x": noise}), guide, noisy, num_samples=settings.num_weights
    )
    return Trained(
        samples=draw(model, None, settings.num_samples).clip(0.0, 1.0),
        seconds=seconds,
        log_likelihood=mean_bound(svi, data.test_images),
        importance_weighted=weighted.values.mean(),
    )


if __name__ == "__main__":
    main("pyro", "deterministic_ica", train)
