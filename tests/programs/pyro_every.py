# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every loss with a model and a guide that it takes, for the tests of Pyro."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from every import LOSSES, OF_RUNS
from pyro.infer import SVI
from torch import nn

import pyro_spread
from pyro_spread import ImplicitDistribution, compiled, concat_sites, two_player


class How(NamedTuple):
    """
    How a loss is run.

    :param made: from a loss to the one that is used.
    :param before: number of steps before those that are run in this way.
    """

    made: Callable[[Any], Any]
    before: int


AS_IT_IS = How(lambda loss: loss, 0)
# The graph as it was recorded: what torch.compile makes of it is not this library's.
COMPILED = How(functools.partial(compiled, disable=True), 2)


def eager_and_compiled(
    names: Iterable[str], quick: Iterable[str] = (), argument: str = "name", **fixed: Any
) -> Any:
    """
    A parametrisation by losses as they are, and compiled.

    :param names: of losses.
    :param quick: those whose compiled half is not slow.
    :param argument: of the test, that takes the name; ``how`` takes the other half.
    :param fixed: other arguments, each with its values; compiled there are the last ones alone.
    """
    arguments, cases = [argument, "how", *fixed], []
    every: list[tuple[Any, ...]] = [()]
    for values in fixed.values():
        every = [(*each, value) for each in every for value in values]
    for name in names:
        cases += [pytest.param(name, AS_IT_IS, *each) for each in every]
        marks = () if name in quick else pytest.mark.slow
        cases.append(pytest.param(name, COMPILED, *every[-1], marks=marks))
    return pytest.mark.parametrize(arguments, cases, ids=_identify)


def _identify(value: Any) -> str | None:
    if isinstance(value, How):
        return "compiled" if value is COMPILED else "eager"
    return type(value).__name__ if isinstance(value, BaseException) else None


def net(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


class Problem:
    """Model, guide and loss on two-dimensional data, the same at every call."""

    def __init__(self, name, how=AS_IT_IS):
        pyro.clear_param_store()
        torch.manual_seed(0)
        self.entry = (LOSSES | OF_RUNS)[name]
        self.x = 1.5 + torch.randn(20, 2)
        self.decoder, self.encoder = net(2, 2), net(4, 2)
        self.critic = None
        self.loss = how.made(self.entry.make(pyro_spread, self.make_critic))
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
