# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
The stock ELBOs are the reference: at equal draws our losses give their values and gradients.

A model whose data are a Delta, under SpreadELBO with noise that is handed to it, is the same model
with the noise written into its likelihood, under the stock ELBO. A guide that has densities
everywhere makes of the contrast losses the stock ELBO. Losses that compare draws are compared with
the same formula, written out, on the draws of the stock trace.
"""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, poutine
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoNormal
from pyro_stock_models import (
    HANDLERS,
    MODELS,
    SCALE,
    SHIFT,
    Handed,
    X,
    delta,
    normal,
    sequential,
    weight,
)
from torch import nn

from pyro_spread import (
    MMD,
    EnergyDistance,
    GaussianKernel,
    PriorContrastELBO,
    SpreadELBO,
    concat_sites,
)


def hand_spread(loc):
    return dist.Normal(loc, SCALE)


def noise_of(model, x):
    names = [f"x_{i}" for i in range(3)] if model is sequential else ["x"]
    return {name: Handed(SCALE) for name in names}


def of(model, like, handler=None):
    wrapped = functools.partial(model, like=like)
    return wrapped if handler is None else handler(wrapped)


def measured(loss, model, guide, x):
    """Value and gradients by name, from one seed."""
    store = pyro.get_param_store()
    pyro.set_rng_seed(3)
    value = loss.loss_and_grads(model, guide, *(x if isinstance(x, tuple) else (x,)))
    grads = {}
    for name, param in store.named_parameters():
        grads[name] = None if param.grad is None else param.grad.clone()
        param.grad = None
    return value, grads


def assert_same(ours, stock):
    (value, grads), (wanted, wanted_grads) = ours, stock
    assert value == pytest.approx(wanted, rel=1e-10, abs=1e-10)
    assert grads.keys() == wanted_grads.keys()
    for name, wanted in wanted_grads.items():
        grad = grads[name]
        assert (grad is None) == (wanted is None), name
        if wanted is not None:
            torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-10, msg=name)


def started(guide, x):
    """A guide whose params are in the store, not at a place where gradients vanish."""
    pyro.set_rng_seed(1)
    guide(*(x if isinstance(x, tuple) else (x,)))
    with torch.no_grad():
        for param in pyro.get_param_store()._params.values():
            param.add_(0.1 * torch.randn(param.shape, dtype=param.dtype))
    return guide


def compared(model, x, guide_of=AutoNormal, handler=None, elbo=infer.Trace_ELBO, **options):
    pyro.clear_param_store()
    hand = of(model, hand_spread, handler)
    y = tuple(each + SHIFT for each in x) if isinstance(x, tuple) else x + SHIFT
    guide = started(guide_of(hand), y)
    stock = measured(elbo(**options), hand, guide, y)
    loss = SpreadELBO(noise_of(model, x), elbo(**options))
    return measured(loss, of(model, delta, handler), guide, x), stock


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", MODELS)
def test_models_and_plates(name):
    assert_same(*compared(*MODELS[name]))


def named(x, like):
    mu = pyro.sample("mu", normal())
    u = pyro.sample("u", dist.LogNormal(torch.zeros(()), 1.0))
    w = weight()  # outside of the plate, since it may be lifted to a latent
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, u))
        pyro.sample("x", like(w * z), obs=x)


@pytest.mark.parametrize("name", HANDLERS)
def test_handlers_around_the_model(name):
    assert_same(*compared(named, X, handler=HANDLERS[name]))


def list_of_guides(model):
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(poutine.block(model, expose=["mu"])))
    guide.append(autoguide.AutoDelta(poutine.block(model, expose=["u", "z"])))
    return guide


def structured(model):
    kinds = {"mu": "normal", "u": "mvn", "z": "delta"}
    return autoguide.AutoStructured(model, conditionals=kinds, dependencies={"mu": {"u": "linear"}})


GUIDES = {
    "AutoDelta": autoguide.AutoDelta,
    "AutoNormal": autoguide.AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": autoguide.AutoLowRankMultivariateNormal,
    "AutoIAFNormal": functools.partial(autoguide.AutoIAFNormal, hidden_dim=[10]),
    "AutoLaplaceApproximation": autoguide.AutoLaplaceApproximation,
    "AutoGuideList": list_of_guides,
    "AutoStructured": structured,
}


@pytest.mark.parametrize("name", GUIDES)
def test_autoguides(name):
    assert_same(*compared(named, X, GUIDES[name]))


def discrete(x, like):
    p = pyro.sample("p", dist.Beta(torch.ones(()), 2.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(p), infer={"enumerate": "parallel"})
        pyro.sample("x", like(weight() * k.to(x.dtype)), obs=x)


def both_kinds(model):
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(poutine.block(model, expose=["p"])))
    guide.append(autoguide.AutoDiscreteParallel(poutine.block(model, expose=["k"])))
    return guide


@pytest.mark.parametrize("guide", [both_kinds, lambda m: AutoNormal(poutine.block(m, hide=["k"]))])
def test_discrete_latents(guide):
    elbo = functools.partial(infer.TraceEnum_ELBO, max_plate_nesting=1)
    assert_same(*compared(discrete, X, guide, elbo=elbo))


ELBOS = {
    "TraceMeanField": {"elbo": infer.TraceMeanField_ELBO},
    "TraceGraph": {"elbo": infer.TraceGraph_ELBO},
    "Trace, particles": {"elbo": infer.Trace_ELBO, "num_particles": 3},
    "Trace, vectorised": {
        "elbo": infer.Trace_ELBO,
        "num_particles": 3,
        "vectorize_particles": True,
        "max_plate_nesting": 1,
    },
    "Renyi": {"elbo": infer.RenyiELBO, "alpha": 0.5, "num_particles": 2},
}


def shared(x, like):
    mu = pyro.sample("mu", normal())
    w = weight()
    with pyro.plate("data", len(x)):
        pyro.sample("x", like((mu * w).expand(*mu.shape[:-1], len(x))), obs=x)


@pytest.mark.parametrize("name", ELBOS)
def test_stock_elbos(name):
    # Particles run one after another in a SpreadELBO, so that only a lone latent is drawn alike.
    model = shared if "vectorised" in name else named
    assert_same(*compared(model, X, **ELBOS[name]))


@pytest.mark.parametrize("guide", ["AutoNormal", "AutoMultivariateNormal", "AutoStructured"])
@pytest.mark.parametrize("noise", [False, True])
def test_contrasts_without_an_implicit_site_are_the_stock_elbo(noise, guide):
    pyro.clear_param_store()
    hand = of(named, hand_spread)
    guide = started(GUIDES[guide](hand), X)
    x = X + SHIFT if noise else X
    stock = measured(infer.Trace_ELBO(), hand, guide, x)
    critic = concat_sites(nn.Linear(1, 1).double(), "z")
    loss = PriorContrastELBO(critic, noise=noise_of(named, X) if noise else None)
    value, grads = measured(loss, of(named, delta if noise else hand_spread), guide, X)
    grads = {name: grad for name, grad in grads.items() if not name.startswith("discriminator")}
    assert_same((value, grads), stock)


@pytest.mark.parametrize("name", ["nested", "crossed", "subsample", "mask", "scale", "dim -2"])
def test_contrasts_without_an_implicit_site_under_plates_and_handlers(name):
    model, x = MODELS[name]
    pyro.clear_param_store()
    hand = of(model, hand_spread)
    guide = started(AutoNormal(hand), x)
    stock = measured(infer.Trace_ELBO(), hand, guide, x)
    site = next(iter(set(guide.prototype_trace.stochastic_nodes) & {"z", "r", "mu"}))
    loss = PriorContrastELBO(concat_sites(nn.Linear(1, 1).double(), site))
    value, grads = measured(loss, hand, guide, x)
    grads = {name: grad for name, grad in grads.items() if not name.startswith("discriminator")}
    assert_same((value, grads), stock)


def draws(x, like=delta):
    """A generator with the forms of plates that all losses take."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal())
        pyro.sample("x", like(weight() * z + 0.1), obs=x)


def energy(x, y):
    def mean(a, b):
        return (a[:, None] - b[None, :]).abs()

    n, m = len(x), len(y)
    within = mean(x, x).sum() / (n * (n - 1)) + mean(y, y).sum() / (m * (m - 1))
    return 2 * mean(x, y).mean() - within


def discrepancy(x, y):
    def k(a, b):
        return torch.exp(-0.5 * (a[:, None] - b[None, :]) ** 2)

    n, m = len(x), len(y)
    xx, yy = k(x, x), k(y, y)
    within = (xx.sum() - xx.diagonal().sum()) / (n * (n - 1))
    within = within + (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return within - 2 * k(x, y).mean()


@pytest.mark.parametrize("wrapped", [None, "seed", "infer config", "block"])
@pytest.mark.parametrize("kind", ["energy", "mmd"])
def test_losses_that_compare_draws(kind, wrapped):
    loss = EnergyDistance() if kind == "energy" else MMD(GaussianKernel(1.0))
    model = of(draws, delta, HANDLERS.get(wrapped))
    pyro.set_rng_seed(3)
    weight()
    trace = poutine.trace(poutine.uncondition(model)).get_trace(X)
    wanted = (energy if kind == "energy" else discrepancy)(X, trace.nodes["x"]["value"])
    wanted.backward()
    param = pyro.get_param_store()._params["weight"]
    grad, param.grad = param.grad, None
    value, grads = measured(loss, model, lambda x: None, X)
    assert value == pytest.approx(float(wanted), rel=1e-9)
    torch.testing.assert_close(grads["weight"], grad, rtol=1e-8, atol=1e-10)
