# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
The stock ELBOs are the reference: at equal draws our losses give their values and gradients.

A model whose data are a Delta, under SpreadELBO with noise that is handed to it, is the same model
with the noise written into its likelihood, under the stock ELBO. A guide that has densities
everywhere makes of the contrast losses the stock ELBO. Losses that compare draws are compared with
the same formula, written out, on the draws of a trace. Models and guides carry seeds of their own,
so that all draws are equal whatever a loss does with its key.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro import handlers, infer
from numpyro.infer import SVI, autoguide
from numpyro.infer.autoguide import AutoNormal
from numpyro_stock_models import HANDLERS, MODELS, SCALE, SHIFT, Handed, X, delta, weight

from numpyro_spread import (
    MMD,
    EnergyDistance,
    GaussianKernel,
    PriorContrastELBO,
    SpreadELBO,
    concat_sites,
)
from numpyro_spread.ratio import MLPCritic


def hand_spread(loc):
    return dist.Normal(loc, SCALE)


def of(model, like, handler=None):
    wrapped = functools.partial(model, like=like)
    wrapped = wrapped if handler is None else handler(wrapped)
    return handlers.seed(wrapped, 11)  # for the plates that subsample


def measured(loss, params, model, guide, x):
    """Value, and gradients by name."""
    guide = handlers.seed(guide, 5)

    def value(params):
        return loss.loss(random.key(3), params, model, guide, x)

    return jax.value_and_grad(value)(params)


def assert_same(ours, stock):
    (value, grads), (wanted, wanted_grads) = ours, stock
    np.testing.assert_allclose(value, wanted, rtol=1e-10, atol=1e-10)
    for name, each in wanted_grads.items():
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10, err_msg=name),
            grads[name],
            each,
        )


def started(model, guide, x):
    """Params, not at a place where gradients vanish."""
    svi = SVI(model, guide, optax.adam(0.1), infer.Trace_ELBO())
    params = svi.get_params(svi.init(random.key(1), x))
    leaves, structure = jax.tree.flatten(params)
    keys = random.split(random.key(2), max(len(leaves), 1))
    moved = [
        leaf * jnp.exp(0.1 * random.normal(key, jnp.shape(leaf)))
        for leaf, key in zip(leaves, keys, strict=False)
    ]
    return jax.tree.unflatten(structure, moved)


def compared(model, x, guide_of=AutoNormal, handler=None, elbo=infer.Trace_ELBO, **options):
    hand = of(model, hand_spread, handler)
    guide = guide_of(hand)
    params = started(hand, guide, x + SHIFT)
    stock = measured(elbo(**options), params, hand, guide, x + SHIFT)
    loss = SpreadELBO({"x": Handed(SCALE)}, elbo(**options))
    return measured(loss, params, of(model, delta, handler), guide, x), stock


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", MODELS)
def test_models_and_plates(name):
    assert_same(*compared(*MODELS[name]))


def named(x, like):
    mu = numpyro.sample("mu", dist.Normal())
    u = numpyro.sample("u", dist.LogNormal())
    w = weight()  # outside of the plate, since it may be lifted to a latent
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, u))
        numpyro.sample("x", like(w * z), obs=x)


@pytest.mark.parametrize("name", HANDLERS)
def test_handlers_around_the_model(name):
    assert_same(*compared(named, X, handler=HANDLERS[name]))


def list_of_guides(model):
    guide = autoguide.AutoGuideList(model)
    guide.append(AutoNormal(handlers.block(model, hide=["u", "z"])))
    guide.append(autoguide.AutoDelta(handlers.block(model, hide=["mu"])))
    return guide


GUIDES = {
    "AutoDelta": autoguide.AutoDelta,
    "AutoNormal": AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": autoguide.AutoLowRankMultivariateNormal,
    "AutoLaplaceApproximation": autoguide.AutoLaplaceApproximation,
    "AutoGuideList": list_of_guides,
    "AutoIAFNormal": functools.partial(autoguide.AutoIAFNormal, hidden_dims=[8]),
    "AutoBNAFNormal": functools.partial(autoguide.AutoBNAFNormal, num_flows=1),
    "AutoDAIS": functools.partial(autoguide.AutoDAIS, K=2),
}
LONG = (
    "AutoIAFNormal",
    "AutoBNAFNormal",
    "AutoDAIS",
    "AutoLaplaceApproximation",
    "AutoLowRankMultivariateNormal",
    "AutoDiagonalNormal",
)


def marked(names, long):
    return [pytest.param(n, marks=pytest.mark.slow) if n in long else n for n in names]


@pytest.mark.parametrize("name", marked(GUIDES, LONG))
def test_autoguides(name):
    assert_same(*compared(named, X, GUIDES[name]))


ELBOS = {
    "TraceMeanField": {"elbo": infer.TraceMeanField_ELBO},
    "TraceGraph": {"elbo": infer.TraceGraph_ELBO},
    "Trace, particles": {"elbo": infer.Trace_ELBO, "num_particles": 3},
    "Renyi": {"elbo": infer.RenyiELBO, "alpha": 0.5, "num_particles": 2},
}


@pytest.mark.parametrize("name", ELBOS)
def test_stock_elbos(name):
    # A guide with a seed of its own draws alike in all particles; their mean is what counts.
    assert_same(*compared(named, X, **ELBOS[name]))


def contrast(params, site, noise=None):
    critic = concat_sites(MLPCritic([2]), site)
    return PriorContrastELBO(critic, noise=noise)


@pytest.mark.parametrize(
    "name",
    marked(
        ["nested", "crossed", "subsample", "mask", "scale", "dim -2", "local"], ("dim -2", "mask")
    ),
)
@pytest.mark.parametrize(
    "guide", marked(["AutoNormal", "AutoMultivariateNormal"], ("AutoMultivariateNormal",))
)
@pytest.mark.parametrize("noise", [False, True])
def test_contrasts_without_an_implicit_site_are_the_stock_elbo(name, guide, noise):
    model, x = MODELS[name]
    hand = of(model, hand_spread)
    guide = GUIDES[guide](hand)
    site = {"nested": "r", "crossed": "r", "subsample": "mu"}.get(name, "z")
    y = x + SHIFT if noise else x
    params = started(hand, guide, y)
    stock = measured(infer.Trace_ELBO(), params, hand, guide, y)
    ours = of(model, delta if noise else hand_spread)
    loss = contrast(params, site, {"x": Handed(SCALE)} if noise else None)
    registered = loss.register(ours, guide)
    svi = SVI(ours, registered, optax.adam(0.1), loss)
    first = svi.get_params(svi.init(random.key(1), x))
    assert_same(measured(loss, {**first, **params}, ours, registered, x), stock)


def draws(x, like):
    w = weight()
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", like(w * z + 0.1), obs=x)


def energy(x, y):
    def apart(a, b):
        return jnp.abs(a[:, None] - b[None, :])

    n, m = len(x), len(y)
    within = apart(x, x).sum() / (n * (n - 1)) + apart(y, y).sum() / (m * (m - 1))
    return 2 * apart(x, y).mean() - within


def discrepancy(x, y):
    def k(a, b):
        return jnp.exp(-0.5 * (a[:, None] - b[None, :]) ** 2)

    n, m = len(x), len(y)
    within = (k(x, x).sum() - n) / (n * (n - 1)) + (k(y, y).sum() - m) / (m * (m - 1))
    return within - 2 * k(x, y).mean()


@pytest.mark.parametrize("wrapped", [None, "infer config", "block"])
@pytest.mark.parametrize("kind", ["energy", "mmd"])
def test_losses_that_compare_draws(kind, wrapped):
    loss = EnergyDistance() if kind == "energy" else MMD(GaussianKernel(1.0))
    model = of(draws, delta, HANDLERS.get(wrapped))
    params = {"weight": jnp.array(0.7)}

    def wanted(params):
        own = handlers.uncondition(handlers.substitute(model, params))
        values = handlers.trace(own).get_trace(X)
        return (energy if kind == "energy" else discrepancy)(X, values["x"]["value"])

    assert_same(
        measured(loss, params, model, lambda x: None, X), jax.value_and_grad(wanted)(params)
    )
