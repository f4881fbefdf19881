# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What is taken for NaN, what is not, and what a step that is taken back leaves behind in Pyro."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_spread import (
    ImplicitDistribution,
    NonFiniteError,
    PriorContrastELBO,
    concat_sites,
    diagnose,
    finite_guard,
    guard_status,
    two_player,
)


def adam(rate=1e-2):
    return pyro.optim.Adam({"lr": rate})


def empty(x):
    pass


def normal(x):
    loc = pyro.param("loc", torch.zeros(x.shape[-1]))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


class TestStockLossesUnderAGuard:
    @pytest.mark.parametrize("row", [0, 30])
    def test_nan_that_torch_does_not_print(self, row):
        x = torch.zeros(64, 20)
        x[row, 10] = math.nan
        svi = finite_guard(SVI(normal, empty, adam(), Trace_ELBO()), "skip")
        assert math.isnan(svi.step(x))
        assert "argument(s) ['x'] contain NaN" in guard_status(svi).last

    @pytest.mark.parametrize("action", ["skip", "raise"])
    @pytest.mark.parametrize("name", ["finance", "nan"])
    @pytest.mark.parametrize("size", [5, 2000])
    def test_a_name_is_no_number(self, action, name, size):
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample(name, dist.Bernoulli(0.5), obs=x)

        svi = finite_guard(SVI(model, empty, adam(), Trace_ELBO()), action)
        with pytest.raises(ValueError, match="within the support") as error:
            svi.step(torch.full((size,), 2.0))
        assert not isinstance(error.value, NonFiniteError)
        assert guard_status(svi).skipped == 0

    def test_nan_of_the_models_own_making(self):
        def model(x):
            pyro.sample("x", dist.Normal(torch.zeros(()) / 0.0 * 1.0, 1.0), obs=x)

        svi = finite_guard(SVI(model, empty, adam(), Trace_ELBO()), "skip")
        assert math.isnan(svi.step(torch.tensor(1.0)))
        assert "NaN arose inside of the model or guide" in guard_status(svi).last


class TestAStepThatIsTakenBack:
    @pytest.mark.parametrize("action", ["raise", "skip"])
    def test_counters_and_new_params_are_as_before(self, action):
        encoder, critic = nn.Linear(4, 2), nn.Linear(4, 1)

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x):
            net = pyro.module("encoder", encoder)
            base = dist.Normal(torch.zeros(2), 1.0).to_event(1)

            def draw(eps):
                return net(torch.cat([x.expand(*eps.shape), eps], -1))

            with pyro.plate("data", len(x)):
                pyro.sample("z", ImplicitDistribution(draw, base, (2,)))

        loss = PriorContrastELBO(concat_sites(critic, "z", "x"), annealing=10)
        optim = two_player(adam(math.inf), adam(math.inf))
        svi = finite_guard(SVI(model, loss.register(model, guide), optim, loss), action)
        before = loss.get_state()
        if action == "raise":
            with pytest.raises(NonFiniteError, match="the optimiser's step"):
                svi.step(torch.ones(8, 2))
        else:
            svi.step(torch.ones(8, 2))
        assert loss.steps_done == 0
        assert str(loss.get_state()) == str(before)
        assert not pyro.get_param_store()

    def test_buffers_that_a_net_assigns_anew(self):
        class Averaging(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1))
                self.register_buffer("average", torch.zeros(1))
                self.register_buffer("last", None)

            def forward(self, x):
                self.average = 0.9 * self.average + 1.0
                self.last = x.detach()
                return x * self.weight

        net = Averaging()
        average = net.average

        def model(x):
            loc = pyro.module("net", net)(torch.ones(1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

        svi = finite_guard(SVI(model, empty, adam(), Trace_ELBO()), "skip")
        svi.step(torch.full((3,), math.nan))
        assert net.average is average
        assert average.item() == 0.0
        assert net.last is None
        svi.step(torch.zeros(3))
        assert net.average.item() == 1.0
        diagnose(svi, torch.zeros(3))
        assert net.average.item() == 1.0
