# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What a compiled step notices, what it refuses, and what it undoes."""

import copy
import functools
import gc
import math
import pickle
import warnings
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_spread import (
    R1,
    AdversarialDivergence,
    GaussianNoise,
    NonFiniteError,
    PriorContrastELBO,
    SpreadELBO,
    compiled,
    concat_sites,
    finite_guard,
    two_player,
)

AS_IT_IS = functools.partial(compiled, disable=True)
NOISE = {"x": GaussianNoise(0.3)}


class Model(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), *layers, nn.Linear(8, 3))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(self.net(z), event_dim=1), obs=x)


class Scored(Model):
    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 4)

    def forward(self, x):
        loc, scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Nothing(nn.Module):
    def forward(self, *args):
        pass


def module_of(model, guide=None, loss=None):
    module = (loss or SpreadELBO(NOISE))(model, Guide() if guide is None else guide)
    module.compile(disable=True)
    return module


def graphs(module):
    return len(module._steps._graphs)


def seeded(module, *args, seed=0):
    torch.manual_seed(seed)
    return float(module(*args).detach())


X = torch.randn(6, 3)


class TestGuards:
    """Whatever the graph depends on makes another graph."""

    def test_the_second_step_of_a_kind_makes_its_graph(self):
        module = module_of(Model())
        module(X)
        assert graphs(module) == 0
        module(X)
        assert graphs(module) == 1

    @pytest.mark.parametrize(
        "other",
        [X[:4], X.double(), X.t().contiguous().t()],
        ids=["shape", "dtype", "stride"],
    )
    def test_of_arguments(self, other):
        module = module_of(Model().to(other.dtype), Guide().to(other.dtype))
        same = X.to(other.dtype) if other.dtype == X.dtype else X.double()[:5]
        for x in (same, same, other, other):
            module(x)
        assert graphs(module) == 2

    def test_of_numbers_and_names(self):
        def model(x, power=1.0, how="up"):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            scale = power if how == "up" else 1 / power
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mu, scale), obs=x)

        loss, plain = AS_IT_IS(Trace_ELBO()), Trace_ELBO()
        svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.0}), loss)
        svi.step(torch.ones(4))
        for args in ((1.0, "up"), (3.0, "up"), (3.0, "down")):
            values = []
            for one in (plain, loss):
                svi.loss_and_grads = one.loss_and_grads
                for _ in range(3):
                    pyro.set_rng_seed(0)
                    values.append(svi.step(torch.ones(4), *args))
            assert max(values) - min(values) < 1e-5

    def test_of_modes(self):
        module = module_of(Model(nn.Dropout(0.5)))
        for _ in range(3):
            module(X)
        module.eval()
        values = [seeded(module, X) for _ in range(3)]
        assert values == pytest.approx(3 * values[:1], rel=1e-6)
        assert graphs(module) == 2

    def test_of_what_is_trained(self):
        module = module_of(Model())
        module(X), module(X)
        for param in module.guide.parameters():
            param.requires_grad_(False)
        for _ in range(2):
            module.zero_grad()
            module(X).backward()
        assert graphs(module) == 2
        assert all(param.grad is None for param in module.guide.parameters())
        assert all(param.grad is not None for param in module.model.parameters())

    def test_of_gradients(self):
        module = module_of(Model())
        with torch.no_grad():
            for _ in range(3):
                assert not module(X).requires_grad
        assert module(X).requires_grad

    def test_of_autocast(self):
        module = module_of(Model())
        plain = [seeded(module, X) for _ in range(3)][-1]
        with torch.autocast("cpu", torch.bfloat16):
            cast = [seeded(module, X) for _ in range(3)]
        assert cast[0] == pytest.approx(cast[-1], rel=1e-5)
        assert cast[-1] != plain
        assert graphs(module) == 2

    def test_of_attributes_of_the_loss(self):
        module = compiled(Trace_ELBO(), disable=True)(Scored(), Guide())
        module(X), module(X)
        module.elbo.num_particles = 2
        module(X), module(X)
        assert graphs(module) == 2

    def test_params_that_were_cleared_and_made_again(self):
        def model(x):
            loc = pyro.param("loc", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

        svi = SVI(model, lambda x: None, pyro.optim.SGD({"lr": 0.1}), AS_IT_IS(Trace_ELBO()))
        runs = []
        for _ in range(2):
            pyro.clear_param_store()
            runs.append([svi.step(torch.ones(5)) for _ in range(4)])
        assert runs[0] == pytest.approx(runs[1])
        assert runs[0][-1] < runs[0][0]


class TestRandomness:
    def test_steps_differ_and_seeds_repeat(self):
        module = module_of(Model())
        module(X), module(X)
        torch.manual_seed(1)
        one = [float(module(X).detach()) for _ in range(3)]
        torch.manual_seed(1)
        assert one == [float(module(X).detach()) for _ in range(3)]
        assert len(set(one)) == 3

    def test_making_the_graph_draws_nothing(self):
        one, other = module_of(Model()), module_of(Model())
        other.load_state_dict(one.state_dict())
        one(X), one(X)
        other(X)  # its next step records, and that of the first does not
        assert seeded(one, X) == seeded(other, X)

    def test_subsamples_are_drawn_at_every_step(self):
        data = torch.arange(50.0)

        def model():
            mu = pyro.sample("mu", dist.Normal(0.0, 1e-3))
            with pyro.plate("data", 50, subsample_size=5) as rows:
                pyro.sample("x", dist.Normal(mu, 1.0), obs=data[rows])

        guide = AutoNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.0}), AS_IT_IS(Trace_ELBO()))
        losses = [svi.step() for _ in range(30)]
        assert len(set(losses)) == 30

    @pytest.mark.parametrize("every", [2, 5])
    def test_penalties_come_as_often_as_asked(self, every):
        critic = concat_sites(nn.Linear(3, 1), "x")
        loss = AdversarialDivergence(critic, regularizer=R1(1.0, every=every))
        module = module_of(Model(), Nothing(), loss)
        torch.manual_seed(0)
        pulls = []
        for _ in range(200):
            module.zero_grad()
            module(X).backward()
            pulls.append(float(module.discriminator.net.weight.grad.norm()))
        # Two graphs: the gradient of the penalty, 2 w, is there or is not.
        assert graphs(module) == 2
        assert abs(len([p for p in pulls if p > np.median(pulls) + 1e-3]) / 200 - 1 / every) < 0.5


class TestState:
    def test_buffers_move_as_they_do(self):
        modules = [SpreadELBO(NOISE)(Model(nn.BatchNorm1d(8)), Guide()) for _ in range(2)]
        modules[1].load_state_dict(modules[0].state_dict())
        modules[1].compile(disable=True)
        for module in modules:
            torch.manual_seed(2)
            for _ in range(5):
                module(X)
        for one, other in zip(modules[0].buffers(), modules[1].buffers(), strict=True):
            torch.testing.assert_close(one, other)
        assert int(modules[1].model.net[1].num_batches_tracked) == 5

    def test_lazy_layers(self):
        class Lazy(Guide):
            def __init__(self):
                super().__init__()
                self.net = nn.LazyLinear(4)

        module = module_of(Model(), Lazy())
        values = [float(module(X).detach()) for _ in range(3)]
        assert all(map(math.isfinite, values))
        assert graphs(module) == 1

    def test_annealing_goes_on(self):
        def run(how):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            model = conjugate
            guide = AutoNormal(model)
            critic = concat_sites(nn.Linear(1, 1), "mu")
            loss = how(PriorContrastELBO(critic, annealing=4))
            optim = two_player(pyro.optim.Adam({"lr": 0.0}), pyro.optim.Adam({"lr": 0.0}))
            svi = SVI(model, guide, optim, loss)
            values = []
            for _ in range(6):
                pyro.set_rng_seed(1)
                values.append(svi.step(torch.ones(4)))
            return values, loss.steps_done

        one, other = run(lambda loss: loss), run(AS_IT_IS)
        assert one[0] == pytest.approx(other[0], rel=1e-5)
        assert one[1] == other[1] == 6
        assert len({round(value, 3) for value in one[0]}) == 4

    def test_a_copy_and_a_pickle_make_graphs_of_their_own(self):
        module = module_of(Model())
        module(X), module(X)
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert graphs(twin) == 0
            values = [seeded(twin, X) for _ in range(3)]
            assert graphs(twin) == 1
            assert values == pytest.approx(3 * [seeded(module, X)], rel=1e-6)

    def test_graphs_go_with_their_module(self):
        module = module_of(Model())
        module(X), module(X)
        gone = weakref.ref(module), weakref.ref(next(iter(module._steps._graphs.values())))
        del module
        gc.collect()
        assert [one() for one in gone] == [None, None]

    def test_numbers_that_always_change(self):
        module = module_of(WithNumber(), Nothing(), AdversarialDivergence(
            concat_sites(nn.Linear(3, 1), "x")))  # fmt: skip
        for step in range(64):
            module(X, float(step))
        with pytest.warns(UserWarning, match="has met arguments of 64 kinds"):
            module(X, -1.0)
        module(X, -2.0)
        assert len(module._steps._seen) <= 65


class WithNumber(Model):
    def forward(self, x, number):
        return super().forward(x)


def conjugate(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


class TestFailures:
    def test_data_that_are_not_finite(self):
        module = module_of(Model())
        module(X), module(X)
        bad = X.clone()
        bad[0, 0] = math.nan
        with pytest.raises(NonFiniteError, match=r"'x'.*NaN|NaN.*'x'"):
            module(bad)
        assert math.isfinite(module(X))

    def test_params_that_are_not_finite_and_nothing_has_moved(self):
        model = Model(nn.BatchNorm1d(8))
        module = module_of(model)
        module(X), module(X)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        with torch.no_grad():
            model.net[2].bias[0] = math.inf
        with pytest.raises(NonFiniteError):
            module(X)
        before["model.net.2.bias"][0] = math.inf
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value, before[name])

    def test_under_svi_params_optimiser_and_counters_are_as_before(self):
        def model(x):
            loc = pyro.param("loc", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Delta(loc.expand(len(x))), obs=x)

        loss = AS_IT_IS(SpreadELBO(NOISE))
        svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), loss)
        for _ in range(3):
            svi.step(torch.ones(4))
        before = float(pyro.param("loc"))
        with pytest.raises(NonFiniteError):
            svi.step(torch.tensor([1.0, math.nan, 1.0, 1.0]))
        assert float(pyro.param("loc")) == before
        svi.step(torch.ones(4))
        assert float(pyro.param("loc")) != before

    def test_the_guard_skips(self):
        def model(x):
            loc = pyro.param("loc", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Delta(loc.expand(len(x))), obs=x)

        svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), AS_IT_IS(SpreadELBO(NOISE)))
        svi = finite_guard(svi, on_nonfinite="skip")
        for _ in range(3):
            svi.step(torch.ones(4))
        before = float(pyro.param("loc"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            svi.step(torch.tensor([1.0, math.nan, 1.0, 1.0]))
        assert float(pyro.param("loc")) == before

    def test_monitors_still_look(self):
        critic = concat_sites(nn.Linear(3, 1), "x")
        module = module_of(Model(), Nothing(), AdversarialDivergence(critic))
        loss = module.elbo
        for _ in range(8):
            module(X)
        assert loss._watched == 8


def test_it_looks_like_the_loss():
    loss = AdversarialDivergence(concat_sites(nn.Linear(3, 1), "x"))
    found = AS_IT_IS(loss)
    assert isinstance(found, AdversarialDivergence)
    assert type(found).__name__ == "AdversarialDivergence"
    assert found.describe() == loss.describe()
    assert found.discriminator is loss.discriminator
    again = AS_IT_IS(found)
    assert type(again) is type(found)
