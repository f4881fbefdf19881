# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Latents of many shapes, global and local, and what guides of them are run with."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

X = torch.linspace(-1.0, 1.0, 6)


def many_sites(x=X):
    """Global, local and nested latents, scalar and vector, real and constrained."""
    pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    outer = pyro.plate("outer", 2, dim=-2)
    inner = pyro.plate("inner", 6, dim=-1)
    with outer:
        pyro.sample("a", dist.Dirichlet(torch.ones(3)))
    with inner:
        z = pyro.sample("z", dist.Normal(0.0, tau))
        pyro.sample("w", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    with outer, inner:
        pyro.sample("c", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


SHAPES = {"mu": (3,), "tau": (), "a": (2, 1, 3), "z": (6,), "w": (6, 2), "c": (2, 6)}


def local_model(x=X, size=None):
    with pyro.plate("data", len(x), subsample_size=size) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def shapes(values):
    return {name: tuple(value.shape) for name, value in values.items()}


def traced(guide, *args, **kwargs):
    return poutine.trace(guide).get_trace(*args, **kwargs)


def set_up(guide, *args, **kwargs):
    guide(*args, **kwargs)
    return guide


def disturb(guide):
    """Params away from where the net is zero."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
