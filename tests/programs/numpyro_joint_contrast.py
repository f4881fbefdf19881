# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Models of JointContrastELBO, drawn with and without a density, and guides of them."""

import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro_contrast import ALL, X, affine, guide


def model(x):
    """z ~ N(mu, 1), x ~ N(z, 1/2), drawn without a density."""
    mu = numpyro.param("mu", 0.3)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", affine(mu, 1.0))
        numpyro.sample("x", affine(z, 0.5), obs=x)


def dense_guide(x):
    m, s = numpyro.param("m", 0.7), numpyro.param("s", 0.6)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(m * x, s))


def run(loss, model=model, guide=guide, x=X, params=ALL, seed=0):
    return loss.loss(random.key(seed), params, model, guide, x)


def global_model(x):
    w = numpyro.sample("w", dist.Normal(numpyro.param("mu", 0.3), 1.0))
    with numpyro.plate("data", len(x), subsample_size=3) as indices:
        z = numpyro.sample("z", affine(w, 1.0))
        numpyro.sample("x", affine(z, 0.5), obs=x[indices])


def global_guide(x):
    w = numpyro.sample("w", dist.Normal(numpyro.param("mw", 0.2), 0.4))
    with numpyro.plate("data", len(x), subsample_size=3) as indices:
        numpyro.sample("z", affine(numpyro.param("m", 0.7) * x[indices] + w, 0.6))


def hierarchical(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
