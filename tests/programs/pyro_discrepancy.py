# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The losses that need no critic and models for them, for their tests."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyro_spread import (
    MMD,
    EnergyDistance,
    GaussianKernel,
    SlicedWasserstein,
)

LOSSES = {
    "mmd": lambda **options: MMD(GaussianKernel([0.5, 1.0, 2.0]), **options),
    "energy": lambda **options: EnergyDistance(**options),
    "sliced": lambda **options: SlicedWasserstein(20, **options),
}


def guide(*args, **kwargs):
    pass


def model(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Delta(loc + scale * z), obs=x)


def injected(x, eps):
    """A model whose draws are w times its argument, so that only the noise is random."""
    w = pyro.param("w", torch.tensor(0.7))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Delta(w * eps, event_dim=1), obs=x)


def two_sites(x, y, eps, c=None):
    w = pyro.param("w", torch.tensor(0.7))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Delta(w * eps, event_dim=1), obs=x)
        pyro.sample("y", dist.Delta(eps[:, 0] - w), obs=y)


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
