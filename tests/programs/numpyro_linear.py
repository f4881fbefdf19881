# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A linear decoder with a latent per datum, and what a loss is run with."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax import random

from numpyro_spread import GaussianNoise

S = 0.5
NOISE = {"x": GaussianNoise(S)}
ADAM = optax.adam(1e-2)
N, D, K = 6, 3, 2


def data(n=N):
    return random.normal(random.key(0), (n, D)) + 1.0


def model(x):
    A = numpyro.param("A", jnp.full((K, D), 0.5))
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(K), 1.0).to_event(1))
        numpyro.sample("x", dist.Delta(z @ A, event_dim=1), obs=x)


def point(x):
    """No latent variable: the bound is the exact log-density, and shows what was scored."""
    g = numpyro.param("g", 0.0)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("x", dist.Delta(jnp.full(x.shape, g), event_dim=1), obs=x)


def no_guide(x):
    pass


def evaluate(loss, model=point, guide=no_guide, params=None, *args, seed=1, **kwargs):
    args = args if args or kwargs else (data(),)
    params = {"g": jnp.array(0.0)} if params is None else params
    return loss.loss(random.key(seed), params, model, guide, *args, **kwargs)
