# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A model and a guide with an implicit latent, small enough to read."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from jax.tree_util import Partial

from numpyro_spread import GaussianNoise, ImplicitDistribution

EPS = dist.Normal(0.0, 1.0)
NOISE = {"z": GaussianNoise(0.3)}
DATA = jnp.linspace(-1.0, 1.0, 5)
KEY = random.key(0)


def model(x=DATA):
    with numpyro.plate("data", 5):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(5), 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x=DATA):
    slope = numpyro.param("slope", 0.5)
    with numpyro.plate("data", 5):
        fn = Partial(lambda slope, e: slope * DATA + 0.4 * e, slope)
        numpyro.sample("z", ImplicitDistribution(fn, EPS, ()))


PARAMS = {"slope": jnp.array(0.5)}


def implicit(name="z", fn=lambda e: e, base=EPS, event_shape=()):
    return numpyro.sample(name, ImplicitDistribution(fn, base, event_shape))


def evaluate(loss, model=model, guide=guide, *args, params=PARAMS):
    return float(loss.loss(KEY, params, model, guide, *(args or (DATA,))))
