# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Latents of many shapes, global and local, and what guides of them are run with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from numpyro_spread import AutoImplicit

X = np.linspace(-1.0, 1.0, 6, dtype=np.float32)


def many_sites(x=X):
    """Global, local and nested latents, scalar and vector, real and constrained."""
    numpyro.sample("mu", dist.Normal(jnp.zeros(3), 1.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    outer = numpyro.plate("outer", 2, dim=-2)
    inner = numpyro.plate("inner", 6, dim=-1)
    with outer:
        numpyro.sample("a", dist.HalfNormal(jnp.ones(3)).to_event(1))
    with inner:
        z = numpyro.sample("z", dist.Normal(0.0, tau))
        numpyro.sample("w", dist.LogNormal(jnp.zeros(2), 1.0).to_event(1))
    with outer, inner:
        numpyro.sample("c", dist.Normal(z, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


SHAPES = {"mu": (3,), "tau": (), "a": (2, 1, 3), "z": (6,), "w": (6, 2), "c": (2, 6)}


def local_model(x=X, size=None):
    with numpyro.plate("data", len(x), subsample_size=size) as index:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def shapes(values):
    return {name: tuple(value.shape) for name, value in values.items()}


def traced(guide, *args, params=None, seed=0, **kwargs):
    substituted = handlers.substitute(handlers.seed(guide, seed), data=params or {})
    return handlers.trace(substituted).get_trace(*args, **kwargs)


def init(guide, *args, seed=0, **kwargs):
    """The params, from one program: op by op, every small operation would be one of its own."""

    args = [jnp.asarray(arg) if isinstance(arg, np.ndarray) else arg for arg in args]

    @jax.jit
    def start(key):
        sites = traced(guide, *args, seed=key, **kwargs)
        return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

    return start(jax.random.key(seed))


def disturbed(params, seed=1):
    """Params away from where the net is zero."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        leaf * jnp.exp(0.1) + 0.3 * jnp.abs(jax.random.normal(key, leaf.shape))
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def two_sites(x=X):
    mu = numpyro.sample("mu", dist.HalfNormal(jnp.ones(2)).to_event(1))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu.sum(), 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


@functools.cache
def many():
    """A guide for many sites, and its params."""
    guide = AutoImplicit(many_sites, hidden=(4,), init_samples=4)
    return guide, init(guide)
