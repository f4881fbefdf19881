# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A random walk, step by step: bodies of scan, and how they run over time."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

T, N = 3, 4
KEY = jax.random.key(0)
X = jax.random.normal(KEY, (T, N))


def over_time(visit, start=None):
    """A model or guide of x, whose steps are visits."""

    def run(x, *rest):
        def body(previous, xt):
            with numpyro.plate("N", N):
                return visit(previous, xt), None

        scan(body, jnp.zeros(N) if start is None else start, x)

    return run


def walk(previous, xt):
    z = numpyro.sample("z", dist.Normal(0.5 * previous, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=xt)
    return z


def no_guide(*args):
    pass
