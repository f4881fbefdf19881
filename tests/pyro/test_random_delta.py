# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The guide ``Delta(m + s * eps)``, which has no entropy, in all its disguises; and its cousins."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam
from pyro.util import get_rng_state
from pyro_contrast import Told, affine, data, param, sgd, snapshot, total, unchanged
from torch import nn

from pyro_spread import AutoImplicit, PriorContrastELBO

X = data()
EPS = dist.Normal(torch.zeros(6), 1.0)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def delta(value):
    with pyro.plate("data", len(value)):
        pyro.sample("z", dist.Delta(value))


def auxiliary(name="eps", fn=EPS):
    return pyro.sample(name, fn.to_event(1), infer={"is_auxiliary": True})


def at_a_site(x):
    delta(param("m") * x + param("s") * auxiliary())


def unseeded(x):
    delta(param("m") * x + param("s") * torch.randn(len(x)))


def bernoulli(x):
    delta(param("m") * x + param("s") * torch.bernoulli(torch.full((len(x),), 0.5)))


def after_a_learned_site(x):
    # The draws are scored, but the params after them move the Delta too.
    delta(param("s") * auxiliary(fn=dist.Normal(param("m") * x, 1.0)))


def implicit_noise(x):
    with pyro.plate("data", len(x)):
        eps = pyro.sample("eps", affine(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(param("m") + param("s") * eps))


def an_event(x):
    value = param("m") * x + param("s") * auxiliary()
    pyro.sample("z", dist.Delta(value, event_dim=1))


class Unregistered(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)

    def forward(self, x):
        delta(self.net(torch.stack([x, torch.randn(len(x))], -1))[..., 0])


class Pyro(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.3))
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        delta(self.loc * x + self.scale * auxiliary())


class Bound:
    def __init__(self):
        self.s = torch.tensor(0.5, requires_grad=True)

    def guide(self, x):
        delta(x + self.s * torch.randn(len(x)))


GUILTY = {
    "site": lambda: at_a_site,
    "unseeded": lambda: unseeded,
    "bernoulli": lambda: bernoulli,
    "learned site": lambda: after_a_learned_site,
    "implicit noise": lambda: implicit_noise,
    "event": lambda: an_event,
    "module": Unregistered,
    "PyroModule": Pyro,
    "method": lambda: Bound().guide,
}


@pytest.mark.parametrize("form", GUILTY)
@pytest.mark.parametrize("adaptive", [True, False])
def test_a_delta_at_noise_and_params_is_refused(form, adaptive):
    guide = GUILTY[form]()
    loss = PriorContrastELBO(Told(total), adaptive=adaptive)
    message = r"guide site 'z' is a Delta at a function of random noise.*ImplicitDistribution\(fn"
    for method in (loss.loss, loss.loss_and_grads, loss.logits, loss.held_out_check):
        before, state = snapshot(), get_rng_state()
        with pytest.raises(ValueError, match=message):
            method(model, guide, X)
        assert unchanged(before)
        assert torch.equal(get_rng_state()["torch"], state["torch"])


def test_it_is_refused_in_svi_and_without_a_trace():
    # The stock ELBO takes it for a point estimate, and says nothing.
    assert Trace_ELBO().loss(model, unseeded, X) < 1e6
    pyro.clear_param_store()
    svi = SVI(model, unseeded, sgd(), PriorContrastELBO(Told(total)))
    with pytest.raises(ValueError, match="the guide collapses to a point"):
        svi.step(X)
    assert not list(pyro.get_param_store())


# --- what is no crime


def point(x):
    delta(param("m") * x)


def amortised_point(x):
    pyro.module("net", NET)
    delta(NET(x[:, None])[:, 0])


def fixed_change_of_variables(x):
    delta(2 * auxiliary(fn=dist.Normal(param("m") * x, param("s"))) + 1)


def fixed_noise(x):
    delta(x + torch.randn(len(x)))


def with_its_density(x):
    m, s = param("m"), param("s")
    eps = auxiliary()
    with pyro.plate("data", len(x)):
        z = m * x + s * eps
        pyro.sample("z", dist.Delta(z, log_density=-s.log().expand(len(x))))


NET = nn.Linear(1, 1)


def globally(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    w = pyro.sample("w", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, w), obs=x)


INNOCENT = {
    "point": (model, lambda: point),
    "net": (model, lambda: amortised_point),
    "change of variables": (model, lambda: fixed_change_of_variables),
    "fixed noise": (model, lambda: fixed_noise),
    "log_density": (model, lambda: with_its_density),
    "AutoDelta": (globally, lambda: AutoDelta(globally)),
    "AutoNormal": (globally, lambda: AutoNormal(globally)),
    "AutoNormal local": (model, lambda: AutoNormal(model)),
    "AutoMultivariateNormal": (globally, lambda: AutoMultivariateNormal(globally)),
    "AutoLowRank": (globally, lambda: AutoLowRankMultivariateNormal(globally, rank=1)),
}


@pytest.mark.parametrize("form", INNOCENT)
def test_other_guides_are_as_under_the_stock_elbo(form):
    program, make = INNOCENT[form]
    guide = make()
    guide(X)  # autoguides set themselves up, with random numbers
    values = []
    for loss in (PriorContrastELBO(Told(total)), Trace_ELBO()):
        pyro.set_rng_seed(1)
        values.append(loss.loss_and_grads(program, guide, X))
        pyro.set_rng_seed(1)
        values.append(loss.loss(program, guide, X))
    assert values == pytest.approx([values[-1]] * 4, rel=1e-6)


def test_an_autoguide_without_density_is_accepted():
    guide = AutoImplicit(globally, hidden=(4,))
    assert PriorContrastELBO(Told(total)).loss_and_grads(globally, guide, X)


def test_the_check_is_made_once_and_leaves_no_trace():
    runs = []

    def counted(x):
        runs.append(pyro.get_param_store().keys() >= {"m"})
        delta(pyro.param("m", lambda: torch.rand(())) * x)

    loss = PriorContrastELBO(Told(total))
    pyro.set_rng_seed(4)
    first = loss.loss(model, counted, X)
    assert runs[0] is False
    # Even the params of the look have been forgotten: the guide's own run makes them anew.
    assert runs[-1] is False
    m = pyro.param("m").item()
    count = len(runs)
    loss.loss(model, counted, X)
    assert len(runs) == count + 1
    pyro.clear_param_store()
    pyro.set_rng_seed(4)
    assert Trace_ELBO().loss(model, counted, X) == pytest.approx(first)
    assert pyro.param("m").item() == m


def test_a_guilty_guide_is_refused_every_time():
    loss = PriorContrastELBO(Told(total))
    for _ in range(2):
        with pytest.raises(ValueError, match="guide site 'z' is a Delta"):
            loss.loss(model, unseeded, X)


def test_methods_of_different_objects_are_different_guides():
    class Posterior:
        def __init__(self, run):
            self.run = run

        def guide(self, x):
            return self.run(x)

    loss = PriorContrastELBO(Told(total))
    loss.loss(model, Posterior(AutoNormal(model)).guide, X)
    with pytest.raises(ValueError, match="'z' is a Delta"):
        loss.loss(model, Posterior(at_a_site).guide, X)
