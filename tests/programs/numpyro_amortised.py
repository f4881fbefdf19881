# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Amortised guides in NumPyro as tests use them; the twin for Pyro has the same names."""

import copy
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer import Predictive

from numpyro_spread import AutoAmortized

B = types.SimpleNamespace(
    sample=numpyro.sample,
    factor=numpyro.factor,
    deterministic=numpyro.deterministic,
    plate=numpyro.plate,
    mask=handlers.mask,
    dist=dist,
    np=jnp,
)
Array = jnp.array


def double():
    """A context in which numbers have 64 bits."""
    return jax.enable_x64(True)


def host(value):
    """As an array of NumPy."""
    return np.asarray(value)


def log_prob_of(sites):
    """Log density of a trace's sites together."""
    return sum(host(site["fn"].log_prob(site["value"])).sum() for site in sites.values())


def inside(support, value):
    """Whether each value is in a support."""
    return host(support(jnp.asarray(value)))


def run(program, *args):
    """A run of a guide that may not be set up."""
    return handlers.seed(program, 0)(*args)


def ready(model, *args, disturbed=0.3, **options):
    """A guide that is set up, with params away from where they start."""
    defaults = {"hidden": (8,), "num_components": 3, "init_samples": 60, "exchangeable": True}
    options = defaults | options
    guide = AutoAmortized(model, **options)
    guide.data_sites(*args)

    def start():
        sites = handlers.trace(handlers.seed(guide, 0)).get_trace(*args)
        return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

    # Under jit the draws, which nobody needs, are left out; a callback knows nothing of 64 bits.
    params = start() if jax.config.jax_enable_x64 else jax.jit(start)()
    fixed = guide.standardisation_name
    rng = np.random.default_rng(0)
    own = {name: value for name, value in params.items() if name != fixed}
    own = jax.tree.map(
        lambda x: jnp.asarray(host(x) + disturbed * rng.normal(size=x.shape), x.dtype), own
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

    def conditioned(self, values, *args, program=None):
        """The latents of a run in which they have these values."""
        program = handlers.condition(program or self.guide, data=values)
        return self.sites(*args, program=program)

    def predictive(self, num_samples, parallel, *args):
        """Draws by the parent's Predictive."""
        predictive = Predictive(
            self.guide.model,
            guide=self.guide,
            params=self.params,
            num_samples=num_samples,
            parallel=parallel,
            return_sites=tuple(self.guide.supports),
        )
        return {n: host(x) for n, x in predictive(jax.random.key(0), *args).items()}

    def quantiles(self, levels, *args):
        found = self.guide.quantiles(self.params, levels, *args)
        return {name: host(value) for name, value in found.items()}

    def median(self, *args):
        found = self.guide.median(self.params, *args)
        return {name: host(value) for name, value in found.items()}

    def sample_rows(self, table, num_samples):
        found = self.guide.sample_rows(jax.random.key(0), self.params, table, num_samples)
        return jax.tree.map(host, found)

    def log_prob_rows(self, table, draws):
        return host(self.guide.log_prob_rows(self.params, table, draws))


def with_conditional(site, conditional):
    """A site with another conditional."""
    found = copy.copy(site)
    found.conditional = conditional
    return found


def draw_of(site):
    """The same draw of a site in every call."""
    return site.sample(jax.random.key(1))


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
