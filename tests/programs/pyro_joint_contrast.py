# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Data, a hierarchy, a guide that has a density and a net, for JointContrastELBO."""

import pyro
import pyro.distributions as dist
from pyro_contrast import data, param
from torch import nn

X = data()


def mlp(inputs=2):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 1))


def density_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(param("m") * x, param("s")))


def hierarchical(x=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(X)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
