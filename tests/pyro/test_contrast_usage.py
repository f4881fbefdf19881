# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""PriorContrastELBO in Pyro as it is used: SVI, annealing, modules, files, autoguides, seeds."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro_contrast import (
    VALUES,
    Recorder,
    Told,
    affine,
    assert_equal,
    data,
    guide,
    log_ratio,
    model,
    normal,
    param,
    sgd,
    silent,
    total,
    value_and_grads,
)
from torch import nn

from pyro_spread import (
    R1,
    AutoImplicit,
    GaussianNoise,
    ImplicitDistribution,
    PriorContrastELBO,
    concat_sites,
)

# --- annealing


def weighed(beta):
    def run(x):
        mu = param("mu")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            with poutine.scale(scale=beta):
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return run


def twin(beta):
    known = functools.partial(guide, twin=True)
    return value_and_grads(Trace_ELBO(), weighed(beta), known, data())


def test_annealing_over_steps_weighs_the_likelihood_alone():
    loss = PriorContrastELBO(Told(log_ratio), adaptive=False, annealing=4)
    for step, beta in enumerate([0.25, 0.5, 0.75, 1.0, 1.0]):
        assert loss.steps_done == step
        assert_equal(value_and_grads(loss, model, guide, data()), twin(beta), 1e-5)


def test_steps_of_annealing_may_be_a_numpy_integer():
    loss = PriorContrastELBO(Told(log_ratio), adaptive=False, annealing=np.int64(2))
    for beta in (0.5, 1.0):
        assert_equal(value_and_grads(loss, model, guide, data()), twin(beta), 1e-5)


def test_evaluation_is_at_full_weight_and_no_step():
    loss = PriorContrastELBO(Told(log_ratio), adaptive=False, annealing=4)
    pyro.set_rng_seed(0)
    value = loss.loss(model, guide, data())
    assert value == pytest.approx(twin(1.0)[0], rel=1e-5)
    with torch.no_grad():
        loss.differentiable_loss(model, guide, data())
    loss.logits(model, guide, data())
    assert loss.steps_done == 0
    SVI(model, guide, sgd(), loss).evaluate_loss(data())
    assert loss.steps_done == 0
    SVI(model, guide, sgd(), loss).step(data())
    assert loss.steps_done == 1
    loss.differentiable_loss(model, guide, data()).backward()
    assert loss.steps_done == 2


@pytest.mark.parametrize("as_tensor", [False, True])
def test_annealing_by_a_callable_is_asked_with_the_arguments(as_tensor):
    asked = []

    def beta(x):
        asked.append(x)
        return torch.tensor(0.4) if as_tensor else 0.4

    x = data()
    loss = PriorContrastELBO(Told(log_ratio), adaptive=False, annealing=beta)
    assert_equal(value_and_grads(loss, model, guide, x), twin(0.4), 1e-5)
    pyro.set_rng_seed(0)
    assert loss.loss(model, guide, x) == pytest.approx(twin(0.4)[0], rel=1e-5)
    assert len(asked) == 2  # once a step
    assert all(seen is x for seen in asked)
    assert loss.steps_done == 0


# --- SVI


def mlp(inputs=1):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 1))


def contents():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


@pytest.mark.parametrize("options", [{}, {"adaptive": False}, {"regularizer": R1(0.1)}])
@pytest.mark.parametrize("steps", [1, 3])
def test_two_players_take_turns(options, steps):
    x = data()
    loss = PriorContrastELBO(concat_sites(mlp(2), "x", "z"), **options)
    svi = SVI(model, loss.register(model, guide), sgd(steps=steps), loss)
    svi.evaluate_loss(x)  # all params are there
    for i in range(1, 7):
        before = contents()
        svi.step(x)
        moved = {name for name, value in contents().items() if not torch.equal(value, before[name])}
        players = {name.split("$$$")[0] for name in moved}
        assert "discriminator" in players
        assert players - {"discriminator"} == (set(VALUES) if i % steps == 0 else set())
    assert torch.equal(x, data())
    before = contents()
    svi.evaluate_loss(x)
    assert all(torch.equal(value, before[name]) for name, value in contents().items())


def test_the_head_is_on_the_side_of_the_critic():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 2)

        def forward(self, x):
            loc, log_scale = self.net(x[..., None]).unbind(-1)
            return loc, log_scale.exp()

    x, head = data().repeat(100), Head()
    loss = PriorContrastELBO(concat_sites(mlp(), "z"), head=head)
    svi = SVI(model, guide, sgd(0.0, 0.3), loss)
    for _ in range(300):
        svi.step(x)
    assert {n for n in contents() if "head" in n} == {
        "discriminator$$$head$$$net.weight",
        "discriminator$$$head$$$net.bias",
    }
    # Fitted to draws of N(.7 x, .6²) by maximum likelihood.
    loc, scale = head(data())
    torch.testing.assert_close(loc, 0.7 * data(), atol=0.1, rtol=0)
    torch.testing.assert_close(scale, torch.full((6,), 0.6), atol=0.1, rtol=0)
    draws = Recorder()
    PriorContrastELBO(draws, head=head, num_critic_draws=500).logits(model, guide, data())
    for z in draws.values("z"):
        assert abs(float(z.std()) - 1) < 0.2


def test_seeds_repeat_a_run():
    found = []
    for seed in (1, 1, 2):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        critic = concat_sites(mlp(), "z")
        svi = SVI(model, guide, sgd(steps=2), PriorContrastELBO(critic, num_particles=2))
        found.append([svi.step(data()) for _ in range(4)])
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert len(set(found[0])) == 4


def test_params_that_begin_at_random_begin_as_under_the_stock_elbo():
    def random_guide(x):
        scale = pyro.param("random", lambda: torch.rand(6) + 0.5)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(param("m") * x, scale))

    ours = value_and_grads(PriorContrastELBO(Told(total)), model, random_guide, data())
    assert_equal(ours, value_and_grads(Trace_ELBO(), model, random_guide, data()), 1e-6)


def test_lazy_critics_are_registered_when_they_have_seen_a_value():
    critic = concat_sites(nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(1)), "z", "x")
    loss = PriorContrastELBO({"z": critic})
    assert SVI(model, guide, sgd(), loss).step(data()) != 0
    shapes = {n: tuple(v.shape) for n, v in contents().items() if n.startswith("discriminator")}
    assert shapes["discriminator$$$z.net.0.weight"] == (4, 2)
    pyro.clear_param_store()
    lazy = PriorContrastELBO(concat_sites(nn.LazyLinear(1), "z"))
    lazy.loss(model, guide, data())
    assert pyro.param("discriminator$$$net.weight").shape == (1, 1)


def test_evaluation_leaves_running_averages_alone():
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    loss = PriorContrastELBO(concat_sites(net, "z"), adaptive=False, num_critic_draws=1)
    svi = SVI(model, guide, sgd(), loss)
    before = net[1].running_mean.clone()
    svi.evaluate_loss(data())
    loss.logits(model, guide, data())
    assert torch.equal(net[1].running_mean, before)
    svi.step(data())
    assert not torch.equal(net[1].running_mean, before)


# --- modules and files


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(1, 1)

    def forward(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(self.decoder(z[..., None])[..., 0]), obs=x)


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 1)

    def forward(self, x):
        pyro.module("encoder", self.encoder)

        def fn(eps):
            return self.encoder(torch.stack(torch.broadcast_tensors(x, eps), -1))[..., 0]

        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(fn, dist.Normal(torch.zeros(()), 1.0), ()))


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.2))

    def forward(self, x):
        return self.loc, torch.ones(())


def test_the_module_holds_every_param_and_trains_without_the_store():
    scale = nn.Parameter(torch.tensor(0.5))
    loss = PriorContrastELBO(
        {"z": concat_sites(mlp(), "z")}, {"x": GaussianNoise(scale)}, head=Head()
    )
    module = loss(Model(), Guide())
    names = {name for name, _ in module.named_parameters()}
    assert {"head.loc", "model.decoder.weight", "guide.encoder.bias"} < names
    assert "discriminator.z.net.0.weight" in names
    assert any(value is scale for value in module.parameters())
    optim = torch.optim.SGD(module.parameters(), lr=0.01)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    module(data()).backward()
    optim.step()
    stuck = {n for n, value in module.named_parameters() if torch.equal(value, before[n])}
    assert stuck <= {"discriminator.z.net.2.bias"}
    with torch.no_grad():
        assert not module(data()).requires_grad


@pytest.mark.parametrize("lazy", [False, True])
def test_params_survive_a_file(tmp_path, lazy):
    def started():
        return concat_sites(nn.LazyLinear(1) if lazy else mlp(), "z"), Head()

    def steps(net, head, count, seed):
        pyro.set_rng_seed(seed)
        loss = PriorContrastELBO(net, head=head, num_critic_draws=3)
        svi = SVI(model, guide, sgd(), loss)
        return [svi.step(data()) for _ in range(count)]

    first, second = started(), started()
    steps(*first, 3, seed=0)
    pyro.get_param_store().save(tmp_path / "params")
    wanted = steps(*first, 2, seed=1), contents()
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "params")
    if lazy:  # the first look at the value takes draws of its own
        pyro.set_rng_seed(9)
        PriorContrastELBO(second[0], head=second[1]).loss(model, guide, data())
    found = steps(*second, 2, seed=1), contents()
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    assert found[1].keys() == wanted[1].keys()
    for name, value in wanted[1].items():
        torch.testing.assert_close(found[1][name], value)
    for one, other in zip(first[0].parameters(), second[0].parameters(), strict=True):
        torch.testing.assert_close(one, other)


# --- other guides


def test_predictive_draws_from_an_implicit_guide():
    SVI(model, guide, sgd(), PriorContrastELBO(concat_sites(mlp(), "z"))).step(data())
    # Parallel draws come from the same implicit distribution, expanded.
    for parallel in (True, False):
        draws = Predictive(model, guide=guide, num_samples=300, parallel=parallel)(data())
        assert draws["z"].shape == (300, 6)
        m, s = (pyro.param(name).item() for name in "ms")
        assert abs(float((draws["z"] - m * data()).std()) - s) < 0.1
        assert len(draws["z"].unique()) > 1790


@pytest.mark.parametrize("adaptive", [True, False])
def test_an_autoguide_without_density(adaptive):
    def constrained(x):
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(0.0, tau))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    auto = AutoImplicit(constrained, hidden=(8,))
    critics = {name: concat_sites(mlp(size), name) for name, size in SITES.items()}
    loss = PriorContrastELBO(critics, adaptive=adaptive)
    # With larger steps the tails of the prior throw the guide far away, in most seeds.
    svi = SVI(constrained, auto, sgd(1e-5), loss)
    assert torch.isfinite(torch.tensor([svi.step(data()) for _ in range(3)])).all()
    if adaptive:
        return
    # The prior drops out with its Jacobian: what is left is the likelihood and T.
    zero = PriorContrastELBO({n: Told(silent) for n in SITES}, adaptive=False, name="zero")
    pyro.set_rng_seed(3)
    value = zero.loss(constrained, auto, data())
    pyro.set_rng_seed(3)
    z = poutine.trace(auto).get_trace(data()).nodes["z"]["value"].detach()
    assert value == pytest.approx(-float(normal(data(), z, 0.5).sum()), rel=1e-5)
    logits = loss.logits(constrained, auto, data())
    assert set(logits) == set(SITES)


SITES = {"_auto_latent": 2, "_auto_data": 1}


def test_the_contrast_of_an_autoguide_is_the_prior_in_unconstrained_space():
    def constrained(x):
        z = pyro.sample("z", dist.LogNormal(1.0, 0.3))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    auto, critic = AutoImplicit(constrained, hidden=(8,)), Recorder()
    loss = PriorContrastELBO(critic, adaptive=False)
    for _ in range(400):
        loss.logits(constrained, auto, torch.tensor(2.0))
    draws = torch.cat([values["_auto_latent"] for values, _, _ in critic.seen[2::3]])
    assert abs(float(draws.mean()) - 1) < 0.06
    assert abs(float(draws.std()) - 0.3) < 0.05


def test_other_types_than_the_default():
    x = data().double()

    def wide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(6, dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def wide_guide(x):
        base = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
        s = pyro.param("s", torch.tensor(0.6, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(lambda e: x + s * e, base, ()))

    critic = concat_sites(mlp().double(), "z")
    for adaptive in (True, False):
        loss = PriorContrastELBO(critic, adaptive=adaptive)
        assert loss.differentiable_loss(wide, wide_guide, x).dtype == torch.float64


def test_one_datum_and_no_plate():
    def single(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def single_guide(x):
        pyro.sample("z", affine(param("m") * x, param("s")))

    critic = Recorder()
    for adaptive in (True, False):
        loss = PriorContrastELBO(critic, adaptive=adaptive)
        _, grads = value_and_grads(loss, single, single_guide, torch.tensor(1.0))
        assert all(grad.any() for grad in grads.values())
    assert [tuple(z.shape) for z in critic.values("z")] == 2 * [(), (128,), (128,)]
    assert critic.arguments("x")[1].shape == (128,)
