# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every loss with a model and a guide that it takes, for the tests of Pyro."""

import pyro
import pyro.distributions as dist
import torch
from every import LOSSES, OF_RUNS
from pyro.infer import SVI
from torch import nn

import pyro_spread
from pyro_spread import ImplicitDistribution, concat_sites, two_player


def net(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


class Problem:
    """Model, guide and loss on two-dimensional data, the same at every call."""

    def __init__(self, name):
        pyro.clear_param_store()
        torch.manual_seed(0)
        self.entry = (LOSSES | OF_RUNS)[name]
        self.x = 1.5 + torch.randn(20, 2)
        self.decoder, self.encoder = net(2, 2), net(4, 2)
        self.critic = None
        self.loss = self.entry.make(pyro_spread, self.make_critic)
        self.guide = getattr(self, self.entry.guide)
        self.fails = False
        pyro.set_rng_seed(1)

    def make_critic(self, *sites):
        self.critic = net(2 * len(sites), 1)
        return concat_sites(self.critic, *sites)

    def model(self, x):
        decoder = pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            if self.fails:
                raise RuntimeError("the user's own mistake")
            mean = decoder(z)
            scored = dist.Normal(mean, 0.5).to_event(1)
            fn = scored if self.entry.likely else dist.Delta(mean, event_dim=1)
            pyro.sample("x", fn, obs=x)

    def empty(self, x):
        pass

    def normal(self, x):
        encoder = pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[-2]):
            loc = encoder(torch.cat([x, x], -1))
            pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))

    def implicit(self, x):
        encoder = pyro.module("encoder", self.encoder)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)

        def draw(eps):
            return encoder(torch.cat([x.expand(eps.shape), eps], -1))

        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(draw, base, (2,)))

    def svi(self):
        adam = pyro.optim.Adam({"lr": 1e-2})
        if self.entry.has_critic:
            adam = two_player(adam, pyro.optim.Adam({"lr": 1e-2}))
        guide = self.loss.register(self.model, self.guide)
        return SVI(self.model, guide, adam, self.loss)
