# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Models whose evidence and posterior are known, and guides that are exact."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro_spread import ImplicitDistribution

FACTOR = np.random.default_rng(0).normal(size=(6, 2))
SCALE = 0.5
X = torch.tensor(np.random.default_rng(1).normal(size=(5, 6)), dtype=torch.float32)


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(FACTOR, dtype=torch.float32))

    def forward(self, z):
        return z @ self.weight.T


def linear_model(x, decoder=None):
    decoder = pyro.module("decoder", Decoder() if decoder is None else decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), SCALE).to_event(1), obs=x)


def conjugate_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def conjugate_guide(shift=0.0, width=1.0):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + shift, width * 0.5**0.5))

    return guide


def implicit_guide(shift=0.0, width=1.0):
    def guide(x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x)), 1.0)
            fn = lambda eps: x / 2 + shift + width * 0.5**0.5 * eps  # noqa: E731
            pyro.sample("z", ImplicitDistribution(fn, base, ()))

    return guide


def global_model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
