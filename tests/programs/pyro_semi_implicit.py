# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A model and a guide with an implicit latent, small enough to read."""

import math

import pyro
import pyro.distributions as dist
import torch

from pyro_spread import GaussianNoise, ImplicitDistribution

EPS = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
NOISE = {"z": GaussianNoise(0.3)}
DATA = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)


def model(x=DATA):
    with pyro.plate("data", 5):
        z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x=DATA):
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", 5):
        pyro.sample("z", ImplicitDistribution(lambda e: slope * DATA + 0.4 * e, EPS, ()))


def implicit(name="z", fn=lambda e: e, base=EPS, event_shape=()):
    return pyro.sample(name, ImplicitDistribution(fn, base, event_shape))


# (s, x) and log p(x) of z ~ N(0, 1), x ~ N(z, s²).
CASES = {(1.0, 2.0): -2.26551212, (0.1, 2.0): -2.90411172, (0.1, 5.0): -13.30015132}


def average(loss, model, guide, *args, n=400):
    """Mean and standard error of the bound."""
    values = torch.tensor([-loss.loss(model, guide, *args) for _ in range(n)])
    return float(values.mean()), float(values.std()) / math.sqrt(n)
