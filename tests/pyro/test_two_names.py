# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One param under two names in Pyro's store: stock losses train it, and so do all of these."""

import every
import pyro
import pyro.distributions as dist
import pytest
import torch
from every import Loss
from pyro.contrib.easyguide import easy_guide
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from pyro_every import AS_IT_IS, eager_and_compiled
from torch import nn

import pyro_spread
from pyro_spread import (
    AdversarialDivergence,
    CheckpointError,
    GaussianNoise,
    ImplicitDistribution,
    PriorContrastELBO,
    SpreadELBO,
    _checkpoint_state,
    concat_sites,
    diagnose,
    finite_guard,
    load_checkpoint,
    save_checkpoint,
    two_player,
)

X = torch.linspace(-1.0, 1.0, 24).reshape(8, 3)


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


class Guide(PyroModule):
    """Registers its net by itself, and once more under another name."""

    def __init__(self, implicit):
        super().__init__()
        self.enc, self.implicit = nn.Linear(3, 4), implicit

    def forward(self, x, bad=False):
        pyro.module("encoder", self.enc)
        loc, log_scale = self.enc(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            if self.implicit:
                base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
                draw = ImplicitDistribution(lambda e: loc + log_scale.exp() * e, base, (2,))
                pyro.sample("z", draw)
            else:
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def model(x, bad=False):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        if bad:
            raise RuntimeError("the user's own mistake")
        pyro.sample("x", dist.Normal(z.sum(-1, True).expand(-1, 3), 1.0).to_event(1), obs=x)


def critic(*names):
    return concat_sites(nn.Linear(5, 1), *names)


LOSSES = {name: every.LOSSES[name] for name in every.GUIDED} | every.WITHOUT_NOISE
LOSSES["prior without implicit site"] = Loss(
    lambda p, critic: p.PriorContrastELBO(critic("x", "z")), "normal"
)


def optimiser(has_critic):
    def adam():
        return pyro.optim.Adam({"lr": 1e-2})

    return two_player(adam(), adam(), ema=0.9) if has_critic else adam()


@eager_and_compiled(LOSSES, guarded=[False, True])
def test_every_loss(name, how, guarded, tmp_path):
    implicit = LOSSES[name].guide == "implicit"

    def start():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss, guide = how.made(LOSSES[name].make(pyro_spread, critic)), Guide(implicit)
        svi = SVI(model, loss.register(model, guide), optimiser(LOSSES[name].has_critic), loss)
        return finite_guard(svi) if guarded else svi

    svi = start()
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        svi.step(X, bad=True)
    assert not pyro.get_param_store()
    svi.step(X)
    weight = pyro.param("encoder$$$weight")
    assert weight.unconstrained() is pyro.param("enc$$$weight").unconstrained()
    before = weight.detach().clone()
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        svi.step(X, bad=True)
    assert torch.equal(weight, before)
    diagnose(svi, X)
    svi.step(X)
    assert not torch.equal(weight, before)
    save_checkpoint(tmp_path, svi, 2)
    wanted = svi.step(X), pyro.param("enc$$$weight").detach().clone()
    svi = start()
    load_checkpoint(tmp_path, svi, X)
    # A compiled loss goes on with a step as it is.
    exactly = {"rel": 0, "abs": 0} if how is AS_IT_IS else {"rel": 1e-5}
    assert svi.step(X) == pytest.approx(wanted[0], **exactly)
    assert pyro.param("enc$$$weight").detach().numpy() == pytest.approx(
        wanted[1].numpy(), **exactly
    )


def test_a_failed_load_declares_nothing(tmp_path):
    def start(model):
        pyro.clear_param_store()
        loss = SpreadELBO({"x": GaussianNoise(0.3)})
        return SVI(model, Guide(False), pyro.optim.Adam({"lr": 1e-2}), loss)

    def longer(x, bad=False):
        pyro.param("more", torch.zeros(()))
        model(x, bad)

    svi = start(model)
    svi.step(X)
    save_checkpoint(tmp_path, svi, 1)
    svi = start(longer)
    with pytest.raises(CheckpointError, match="more"):
        load_checkpoint(tmp_path, svi, X)
    assert not pyro.get_param_store()
    assert not pyro.get_param_store()._param_to_name


def test_a_load_that_is_interrupted_changes_nothing(tmp_path, monkeypatch):
    loss = SpreadELBO({"x": GaussianNoise(0.3)})
    svi = SVI(model, Guide(False), pyro.optim.Adam({"lr": 1e-2}), loss)
    svi.step(X)
    save_checkpoint(tmp_path, svi, 1)
    svi.step(X)
    store = pyro.get_param_store()
    before = {name: value.detach().clone() for name, value in store.named_parameters()}
    steps = [float(one.state[p]["step"]) for p, one in svi.optim.optim_objs.items()]

    def stop(*args):
        if args and isinstance(args[0], dict) and "torch" in args[0]:
            calls.append(1)
        if len(calls) == 3:  # tried out, put back, and now for good
            raise KeyboardInterrupt
        return put(*args)

    calls, put = [], _checkpoint_state.set_random_state
    monkeypatch.setattr(_checkpoint_state, "set_random_state", stop)
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(tmp_path, svi, X)
    for name, value in store.named_parameters():
        assert torch.equal(value, before[name])
    assert steps == [float(one.state[p]["step"]) for p, one in svi.optim.optim_objs.items()]


def test_as_a_module():
    loss = PriorContrastELBO(critic("x", "z"))
    module = loss(Model(), Guide(True))
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        module(X, bad=True)
    optim = torch.optim.SGD(list(module.parameters()) or [nn.Parameter(torch.zeros(()))], 0.1)
    module(X).backward()
    optim.step()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


class Model(PyroModule):
    def forward(self, x, bad=False):
        return model(x, bad)


def test_a_critic_that_the_model_names_too():
    net = nn.Linear(3, 1)

    def named(x):
        pyro.module("mine", net)
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    adam = pyro.optim.Adam({"lr": 0.1})
    still = pyro.optim.SGD({"lr": 0.0})
    loss = AdversarialDivergence(concat_sites(net, "x"), noise={"x": GaussianNoise(0.3)})
    svi = SVI(named, lambda x: None, two_player(still, adam), loss)
    before = net.weight.detach().clone()
    svi.step(X)
    assert not torch.equal(net.weight, before)  # by the critic's optimiser
    assert torch.equal(pyro.param("loc"), torch.zeros(3))


def plain(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


def nested(model):
    guide = AutoGuideList(model)
    guide.append(AutoNormal(pyro.poutine.block(model, expose=["a"])))
    guide.append(AutoMultivariateNormal(pyro.poutine.block(model, expose=["b"])))
    return guide


def easy(model):
    @easy_guide(model)
    def guide(self, x):
        group = self.group(match="a|b")
        loc = pyro.param("loc", torch.zeros(group.event_shape))
        scale = pyro.param("scale", torch.ones(group.event_shape), dist.constraints.positive)
        group.sample("ab", dist.Normal(loc, scale).to_event(1))

    return guide


@pytest.mark.parametrize("make", [AutoIAFNormal, AutoNormal, nested, easy])
def test_stock_guides_get_what_the_stock_loss_gives(make):
    data, values = torch.linspace(-1.0, 1.0, 5), []
    for loss in (Trace_ELBO(), PriorContrastELBO(nn.Identity())):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = SVI(plain, make(plain), pyro.optim.Adam({"lr": 1e-2}), loss)
        values.append([svi.step(data) for _ in range(3)])
    assert values[0] == pytest.approx(values[1], rel=1e-6)  # sums are of floats and of tensors
