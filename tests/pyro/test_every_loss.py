# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What every loss promises in Pyro, whatever it compares."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from every import LOSSES, OF_RUNS
from pyro.infer import SVI
from torch import nn

import pyro_spread
from pyro_spread import ImplicitDistribution, concat_sites, two_player

every = pytest.mark.parametrize("name", LOSSES | OF_RUNS)


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


def params():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


@every
def test_a_step_trains_every_player_and_leaves_the_data(name):
    problem = Problem(name)
    data, svi = problem.x.clone(), problem.svi()
    svi.step(problem.x)
    before = params()
    assert math.isfinite(svi.step(problem.x))
    assert torch.equal(problem.x, data)
    moved = {n for n, value in params().items() if not torch.equal(value, before[n])}
    players = ["decoder"] if problem.entry.trains_model else []
    players += ["encoder"] if problem.entry.guide != "empty" else []
    players += ["discriminator"] if problem.entry.has_critic else []
    assert {n.partition("$$$")[0].partition(".")[0] for n in moved} == set(players)


@every
def test_the_same_seed_gives_the_same_run(name):
    runs = []
    for _ in range(2):
        svi = (problem := Problem(name)).svi()
        runs.append([svi.step(problem.x) for _ in range(3)])
    assert runs[0] == runs[1]


@every
def test_evaluation_trains_nothing(name):
    problem = Problem(name)
    svi = problem.svi()
    svi.step(problem.x)
    before = params()
    assert math.isfinite(svi.evaluate_loss(problem.x))
    assert all(torch.equal(value, before[n]) for n, value in params().items())


@every
def test_the_module_holds_all_that_a_step_trains(name):
    problem = Problem(name)

    class Program(nn.Module):
        def __init__(self, fn, own):
            super().__init__()
            self.own, self.fn = own, fn

        def forward(self, x):
            return self.fn(x)

    module = problem.loss(
        Program(problem.model, problem.decoder), Program(problem.guide, problem.encoder)
    )
    module(problem.x).backward()
    trained = {id(p) for p in module.parameters() if p.grad is not None and p.grad.any()}
    expected = [problem.decoder] if problem.entry.trains_model else []
    expected += [problem.encoder] if problem.entry.guide != "empty" else []
    expected += [problem.critic] if problem.entry.has_critic else []
    for part in expected:
        # The last bias of a critic that is only compared may have no slope.
        assert {id(p) for p in list(part.parameters())[:3]} <= trained


@every
def test_an_error_in_the_model_is_the_users_own_and_leaves_nothing(name):
    problem = Problem(name)
    svi, problem.fails = problem.svi(), True
    known = set(pyro.get_param_store().keys())
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        svi.step(problem.x)
    assert set(pyro.get_param_store().keys()) == known
    problem.fails = False
    assert math.isfinite(svi.step(problem.x))


@every
def test_a_loss_can_be_copied(name):
    problem = Problem(name)
    twin = copy.deepcopy(problem.loss)
    assert type(twin) is type(problem.loss)
    assert math.isfinite(twin.loss(problem.model, problem.guide, problem.x))
