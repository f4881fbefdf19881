# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Amortised guides in NumPyro as tests use them; the twin for Pyro has the same names."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from numpyro_spread import AutoAmortized

B = types.SimpleNamespace(
    sample=numpyro.sample, plate=numpyro.plate, mask=handlers.mask, dist=dist, np=jnp
)
Array = jnp.array


def host(value):
    """As an array of NumPy."""
    return np.asarray(value)


def ready(model, *args, disturbed=0.3, **options):
    """A guide that is set up, with params away from where they start."""
    defaults = {"hidden": (8,), "num_components": 3, "init_samples": 60, "exchangeable": True}
    options = defaults | options
    guide = AutoAmortized(model, **options)
    sites = handlers.trace(handlers.seed(guide, 0)).get_trace(*args)
    params = {name: site["value"] for name, site in sites.items() if site["type"] == "param"}
    fixed = guide.standardisation_name
    rng = np.random.default_rng(0)
    own = {name: value for name, value in params.items() if name != fixed}
    own = jax.tree.map(
        lambda x: x + disturbed * jnp.asarray(rng.normal(size=x.shape), x.dtype), own
    )
    return Ready(guide, own | {fixed: params[fixed]})


class Ready:
    """A guide with its params."""

    def __init__(self, guide, params):
        self.guide, self.params = guide, params

    def log_prob(self, values, *args, **kwargs):
        return host(self.guide.log_prob(self.params, values, *args, **kwargs))

    def draw(self, *args, seed=0, sample_shape=(), **kwargs):
        key = jax.random.key(seed)
        found = self.guide.sample_posterior(
            key, self.params, *args, sample_shape=sample_shape, **kwargs
        )
        return {name: host(value) for name, value in found.items()}

    def sites(self, *args, program=None, seed=0, **kwargs):
        """The latents of a run of the guide, or of ``program``, which is made of it."""
        program = handlers.substitute(program or self.guide, data=self.params)
        nodes = handlers.trace(handlers.seed(program, seed)).get_trace(*args, **kwargs)
        return {name: nodes[name] for name in self.guide.supports}


def moved(conditional, direction, by):
    """A conditional with other params."""
    params = {name: value + by * direction[name] for name, value in conditional.params.items()}
    return dataclasses.replace(conditional, params=params)


def direction_of(conditional):
    """A direction in which to move its params."""
    rng = np.random.default_rng(3)
    params = conditional.params.items()
    return {name: jnp.asarray(rng.normal(size=value.shape), value.dtype) for name, value in params}


def slope(function):
    """Derivative of a function of a number at 0."""
    return float(jax.grad(function)(0.0))
