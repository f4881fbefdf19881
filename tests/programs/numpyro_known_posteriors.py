# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Models whose evidence and posterior are known, and guides that are exact."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random

from numpyro_spread import ImplicitDistribution

FACTOR = np.random.default_rng(0).normal(size=(6, 2))
SCALE = 0.5
X = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)))


PARAMS = {"weight": jnp.asarray(FACTOR)}
KEY = random.key(0)


def linear_model(x):
    weight = numpyro.param("weight", jnp.zeros((6, 2)))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight.T, SCALE).to_event(1), obs=x)


def conjugate_model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def conjugate_guide(shift=0.0, width=1.0):
    def guide(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(x / 2 + shift, width * 0.5**0.5))

    return guide


def implicit_guide(shift=0.0, width=1.0):
    def guide(x):
        with numpyro.plate("data", len(x)):
            base = dist.Normal(jnp.zeros(len(x)), 1.0)
            fn = lambda eps: x / 2 + shift + width * 0.5**0.5 * eps  # noqa: E731
            numpyro.sample("z", ImplicitDistribution(fn, base, ()))

    return guide


def global_model(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
