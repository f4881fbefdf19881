# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A net that tells how many steps there were, and places where a program may keep it."""

import collections
import dataclasses

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

DATA = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) + 3


def norm():
    # Its average is over all steps so far, so that it tells how many there were.
    return nn.BatchNorm1d(3, affine=False, momentum=None)


def build(net_of, loss=None):
    pyro.clear_param_store()

    def model(x):
        net = net_of()
        net(x)
        with pyro.plate("data", len(x)):
            loc = pyro.param("w", torch.zeros(3)) + net.running_mean.clone()
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    adam = pyro.optim.Adam({"lr": 0.1})
    return SVI(model, lambda x: None, adam, Trace_ELBO() if loss is None else loss)


def a_dataclass():
    @dataclasses.dataclass(frozen=True)
    class Nets:
        net: nn.Module

    nets = Nets(norm())
    return lambda: nets.net


def a_deque():
    nets = collections.deque([norm()])
    return lambda: nets[0]
