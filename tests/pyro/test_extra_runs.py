# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Runs of model, guide and critic beside those of a step leave nothing behind in Pyro."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_spread import (
    KL,
    AdversarialDivergence,
    AutoImplicit,
    GaussianNoise,
    ImplicitDistribution,
    JointContrastELBO,
    PriorContrastELBO,
    SemiImplicitELBO,
    SpreadELBO,
    concat_sites,
    diagnose,
    importance_weighted_bound,
    simulation_based_calibration,
)

X = 5 + torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


class Counted(nn.Module):
    """Counts its forward passes as batch normalisation does, for inputs of any shape."""

    def __init__(self, size=None):
        super().__init__()
        self.layer = nn.Identity() if size is None else nn.Linear(*size)
        self.register_buffer("runs", torch.tensor(0))

    def forward(self, x):
        self.runs.add_(1)
        return self.layer(x)


class Nets:
    def __init__(self, implicit=False, lazy=False):
        self.dec, self.enc, self.draw = Counted((2, 3)), Counted((3, 4)), Counted()
        self.critic = Counted((5, 1))
        if lazy:
            self.enc = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), Counted())
        self.implicit = implicit

    def model(self, x):
        pyro.module("dec", self.dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.dec(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        h = self.enc(x)
        pyro.module("enc", self.enc)
        with pyro.plate("data", len(x)):
            if self.implicit:
                base = dist.Normal(torch.zeros(2), 1.0).to_event(1)

                def fn(e):
                    return self.draw(h[:, :2] + h[:, 2:].exp() * e)

                pyro.sample("z", ImplicitDistribution(fn, base, (2,)))
            else:
                pyro.sample("z", dist.Normal(h[:, :2], h[:, 2:].exp()).to_event(1))

    def runs(self):
        return [int(net.runs) for net in (self.dec, self.enc, self.draw)]


def of_pairs(nets):
    return concat_sites(nets.critic, "x", "z")


# Loss, whether the guide is implicit, and the runs of critic and implicit draw in one step.
STEPS = {
    "stock": (lambda nets: Trace_ELBO(), False, 0, 0),
    "spread": (lambda nets: SpreadELBO({"x": GaussianNoise(0.3)}), False, 0, 0),
    "prior": (lambda nets: PriorContrastELBO(of_pairs(nets)), False, 0, 0),
    "implicit": (lambda nets: PriorContrastELBO(of_pairs(nets)), True, 2, 1),
    "plain": (lambda nets: PriorContrastELBO(of_pairs(nets), adaptive=False), True, 2, 1),
    "semi": (lambda nets: SemiImplicitELBO({"z": GaussianNoise(0.1)}, 3), True, 0, 1),
    "joint": (lambda nets: JointContrastELBO(of_pairs(nets)), True, 2, 1),
    "forward": (lambda nets: JointContrastELBO(divergence=KL()), False, 0, 0),
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_runs_everything_once(kind):
    make, implicit, critic, draw = STEPS[kind]
    nets = Nets(implicit)
    loss = make(nets)
    svi = SVI(nets.model, nets.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    svi.step(X)
    assert nets.runs() == [1, 1, draw]
    assert int(nets.critic.runs) == critic
    diagnosed = nets.runs()
    if kind != "stock":
        diagnose(svi, X)
    assert nets.runs() == diagnosed
    assert int(nets.critic.runs) == critic
    svi.step(X)
    assert nets.runs() == [2, 2, 2 * draw]


@pytest.mark.parametrize("lazy", [False, True])
def test_no_implicit_site_is_the_stock_elbo(lazy):
    found = []
    for loss in (Trace_ELBO(), PriorContrastELBO(nn.Identity())):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        nets = Nets(lazy=lazy)
        svi = SVI(nets.model, nets.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
        values = [svi.step(X) for _ in range(2)]
        found.append((values, nets.enc.state_dict()))
    (stock, stock_net), (ours, our_net) = found
    assert ours == pytest.approx(stock, rel=1e-6)  # sums are of floats and of tensors
    for name, value in stock_net.items():
        assert torch.allclose(our_net[name], value, rtol=1e-4, atol=1e-6)


def test_a_lazy_critic_is_set_up_by_a_run_that_does_not_count():
    for loss in (
        lambda net: PriorContrastELBO(concat_sites(net, "x", "z")),
        lambda net: JointContrastELBO(concat_sites(net, "x", "z")),
        lambda net: AdversarialDivergence(concat_sites(net, "x")),
    ):
        pyro.clear_param_store()
        nets = Nets(implicit=True)
        critic = nn.Sequential(nn.LazyLinear(4), Counted(), nn.Linear(4, 1))
        guide = nets.guide
        made = loss(critic)
        if isinstance(made, AdversarialDivergence):
            guide = lambda x: None  # noqa: E731
        SVI(nets.model, guide, pyro.optim.Adam({"lr": 1e-3}), made).step(X)
        assert int(critic[1].runs) == 2  # at the draws of either side
        assert nets.runs()[0] == 1


def test_a_held_out_check_changes_nothing():
    nets = Nets(implicit=True)
    loss = PriorContrastELBO(of_pairs(nets))
    svi = SVI(nets.model, nets.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    svi.step(X)
    before = [*nets.runs(), int(nets.critic.runs)]
    loss.held_out_check(nets.model, nets.guide, X, num_steps=3, num_draws=3)
    assert [*nets.runs(), int(nets.critic.runs)] == before


def test_evaluation_counts_no_run():
    nets = Nets()
    importance_weighted_bound(nets.model, nets.guide, X, num_samples=3)
    simulation_based_calibration(nets.model, nets.guide, X, num_simulations=8, num_draws=3)
    assert nets.runs() == [0, 0, 0]


def test_an_implicit_autoguide_is_made_without_a_count():
    nets = Nets()
    guide = AutoImplicit(nets.model, init_samples=8)
    guide(X)
    assert nets.runs()[0] == 0
    svi = SVI(
        nets.model,
        guide,
        pyro.optim.Adam({"lr": 1e-3}),
        PriorContrastELBO(concat_sites(nn.Linear(2, 1), *guide.implicit_sites)),
    )
    svi.step(X)
    assert nets.runs()[0] == 1


def test_a_look_disturbs_no_graph_and_no_identity():
    nets = Nets()
    bn = nn.BatchNorm1d(3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(bn(nets.dec(z)), 1.0).to_event(1), obs=x)

    loss = PriorContrastELBO(nn.Identity())
    svi = SVI(model, nets.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    svi.step(X)
    mean = bn.running_mean
    value = loss.differentiable_loss(model, nets.guide, X)
    diagnose(svi, X)
    importance_weighted_bound(model, nets.guide, X, num_samples=2)
    value.backward()
    assert bn.running_mean is mean
    assert int(bn.num_batches_tracked) == 2
