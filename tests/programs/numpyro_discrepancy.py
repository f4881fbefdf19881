# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The losses that need no critic and models for them, for their tests."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from numpyro_spread import (
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
PARAMS = {"w": jnp.array(0.7)}


def guide(*args, **kwargs):
    pass


def model(x):
    loc = numpyro.param("loc", 0.0)
    scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Delta(loc + scale * z), obs=x)


def injected(x, eps):
    """A model whose draws are w times its argument, so that only the noise is random."""
    w = numpyro.param("w", 0.7)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Delta(w * eps, event_dim=1), obs=x)


def two_sites(x, y, eps, c=None):
    w = numpyro.param("w", 0.7)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Delta(w * eps, event_dim=1), obs=x)
        numpyro.sample("y", dist.Delta(eps[:, 0] - w), obs=y)


def points(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def evaluate(loss, model, *args, seed=0, **kwargs):
    return float(loss.loss(jax.random.key(seed), PARAMS, model, guide, *args, **kwargs))
