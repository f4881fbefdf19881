# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Critics train whatever calls the loss, and wrong ones are refused in words that help."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoStructured
from torch import nn

from pyro_spread import (
    AdversarialDivergence,
    ImplicitDistribution,
    JointContrastELBO,
    JSPi,
    PriorContrastELBO,
    WassersteinCritic,
    concat_sites,
    two_player,
)
from pyro_spread.ratio import MLPCritic
from spread_core.monitors import ClampMonitor, LogitRangeMonitor

X = torch.linspace(-1, 2, 6)


@pytest.fixture(autouse=True)
def seeded():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()


def model(x):
    m = pyro.param("m", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(m, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def no_guide(x):
    pass


def implicit(x):
    s = pyro.param("s", torch.tensor(0.7))
    with pyro.plate("data", len(x)):
        base = dist.Normal(torch.zeros(()), 1.0)
        pyro.sample("z", ImplicitDistribution(lambda e: x + s * e, base, event_shape=()))


def density(x):
    a = pyro.param("a", torch.tensor(0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(a * x, 1.0))


LOSSES = {
    "adversarial": (lambda c: AdversarialDivergence(concat_sites(c, "x")), no_guide),
    "wasserstein": (lambda c: WassersteinCritic(concat_sites(c, "x")), no_guide),
    "prior": (lambda c: PriorContrastELBO(concat_sites(c, "z")), implicit),
    "joint": (lambda c: JointContrastELBO(concat_sites(c, "z")), implicit),
}


def adam():
    return pyro.optim.Adam({"lr": 1e-2})


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("lazy", [False, True])
def test_every_way_of_training_is_the_same(kind, lazy):
    make, guide = LOSSES[kind]
    found = []
    for way in ("step", "function", "captured", "module"):
        pyro.clear_param_store()
        torch.manual_seed(3)
        critic = MLPCritic((4,), **({} if lazy else {"input_dim": 1}))
        loss = make(critic)
        pyro.set_rng_seed(1)
        if way == "step":
            step = SVI(model, guide, adam(), loss).step
        elif way == "function":
            step = SVI(model, guide, adam(), loss.differentiable_loss).step
        else:
            if way == "captured":
                call = loss.differentiable_loss
            else:

                def call(model, guide, x, loss=loss):
                    return loss(model, guide)(x)

            with poutine.trace(param_only=True) as seen:
                call(model, guide, X)
            nodes = seen.trace.nodes.values()
            params = {site["value"].unconstrained() for site in nodes} | set(critic.parameters())
            if way == "captured":
                assert all(any(p is q for q in params) for p in critic.parameters())
                assert any("$$$" in name for name in pyro.get_param_store())
            else:
                assert not any("$$$" in name for name in pyro.get_param_store())
            optim = torch.optim.Adam(params, lr=1e-2)
            pyro.set_rng_seed(1)

            def step(x, call=call, optim=optim):
                optim.zero_grad()
                value = call(model, guide, x)
                value.backward()
                optim.step()
                return value.item()

        start = None if lazy else [p.detach().clone() for p in critic.parameters()]
        values = [step(X) for _ in range(3)]
        if start is not None:
            moved = [not torch.equal(a, b) for a, b in zip(start, critic.parameters(), strict=True)]
            assert any(moved), way
        found.append([float(value) for value in values])
    if not lazy:  # lazy layers start at numbers of their own
        for other in found[1:]:
            assert other == pytest.approx(found[0], rel=1e-4, abs=1e-6)


def test_a_guide_with_densities_needs_no_critic():
    loss = PriorContrastELBO(concat_sites(MLPCritic((4,)), "x", "z"))
    svi = SVI(model, loss.register(model, density), two_player(adam(), adam()), loss)
    start = pyro.param("a", torch.tensor(0.1)).item()
    pyro.set_rng_seed(2)
    value = svi.step(X)
    assert pyro.param("a").item() != start
    pyro.clear_param_store()
    pyro.set_rng_seed(2)
    assert value == pytest.approx(loss.loss(model, density, X), rel=1.0)
    other = SVI(model, density, two_player(adam(), adam(), name="other"), loss)
    with pytest.raises(ValueError, match="no param belongs to the discriminator 'other'"):
        other.step(X)


@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("forms", ["normal-delta", "delta-normal", "normal-normal", "mvn-delta"])
def test_structured_autoguides(forms, scale):
    def two(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.LogNormal(a, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a, b), obs=x)

    kinds = dict(zip("ab", forms.split("-"), strict=True))
    values = []
    for loss in (Trace_ELBO(), PriorContrastELBO(nn.Identity())):
        pyro.clear_param_store()
        guide = AutoStructured(
            two, conditionals=kinds, dependencies={"b": {"a": "linear"}}, init_scale=scale
        )
        guide(X)
        pyro.set_rng_seed(4)
        values.append(SVI(two, guide, adam(), loss).step(X))
    assert values[0] == pytest.approx(values[1], rel=1e-6)


ENDS = [nn.Sigmoid(), nn.Softmax(-1), nn.LogSigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.Softplus()]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
@pytest.mark.parametrize("kind", ["adversarial", "prior", "joint"])
def test_a_critic_must_not_end_in_a_sigmoid(end, kind):
    make, _ = LOSSES[kind]
    inner = nn.Sequential(nn.Linear(1, 1), nn.Sequential(end, nn.Identity()), nn.Flatten(-1))
    with pytest.raises(ValueError, match=f"ends in {type(end).__name__}, whose values"):
        make(inner)
    make(nn.Sequential(end, nn.Linear(1, 1)))
    WassersteinCritic(concat_sites(inner, "x"))  # what it says is no logit


def test_logits_between_zero_and_one_are_found_out():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 1)

        def forward(self, values, *args):
            return torch.sigmoid(self.net(values["x"][:, None])).squeeze(-1)

    svi = SVI(model, no_guide, adam(), AdversarialDivergence(Own()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(120):
            svi.step(X)
    ours = [each for each in caught if "between 0 and 1, on both sides" in str(each.message)]
    assert len(ours) == 1
    assert ours[0].filename == __file__


def test_the_monitors():
    assert not LogitRangeMonitor(usual=0.4, patience=1).observe(0.3, 0.5)
    assert not LogitRangeMonitor(patience=1).observe(0.3, 0.3)
    assert not LogitRangeMonitor(patience=1).observe(0.001, 0.005)
    with pytest.warns(UserWarning, match="between 0 and 1, on both sides"):
        LogitRangeMonitor(patience=1).observe(0.001, 0.2)
    assert not LogitRangeMonitor(patience=1).observe(0.3, 1.1)
    with pytest.warns(UserWarning, match=r"outside of its range .* now -0\.1 nats"):
        ClampMonitor(upper=0.7, patience=1).observe(-0.1)


def test_a_clipped_estimate_is_told():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.0))

        def forward(self, values, *args):
            return self.slope - values["x"].sign() * 3

    loss = AdversarialDivergence(Wrong(), JSPi(0.5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(220):
            loss.loss_and_grads(lambda x: model(x.abs()), no_guide, X.abs() + 1)
    assert sum("reported as the nearest value in" in str(each.message) for each in caught) == 1


def test_a_critic_of_the_wrong_width_is_explained():
    loss = AdversarialDivergence(concat_sites(nn.Linear(3, 1), "x"))
    with pytest.raises(RuntimeError, match="cannot be multiplied") as error:
        loss.loss(model, no_guide, X)
    assert error.value.__notes__[0].startswith(
        "concat_sites gave its net 1 features per datum: 1 of 'x'"
    )

    class Own(nn.Linear):
        def forward(self, values, *args):
            return super().forward(values["x"]).squeeze(-1)

    with pytest.raises(RuntimeError) as error:
        AdversarialDivergence(Own(3, 1), name="own").loss(model, no_guide, X)
    assert "failed on 'x' of shape (6,)" in error.value.__notes__[0]


def test_foreign_optimisers_are_refused():
    with pytest.raises(TypeError, match=r"got torch\.optim\.adam\.Adam\. Use .* pyro\.optim\.Adam"):
        two_player(adam(), torch.optim.Adam)
    with pytest.raises(TypeError, match="generator must be a Pyro optimiser, got torch"):
        two_player(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), adam())
