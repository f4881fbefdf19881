# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of PriorContrastELBO in Pyro, against stock ELBOs of guides with a density.

The critics here are told the log-ratio. Draws of an implicit guide and of its twin are the same
under the same seed, so that most comparisons are exact.
"""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro_contrast import (
    VALUES,
    Known,
    Told,
    assert_equal,
    data,
    guide,
    log_ratio,
    model,
    normal,
    param,
    total,
    value_and_grads,
)
from torch import nn

from pyro_spread import (
    DeterministicGenerator,
    GaussianNoise,
    ImplicitDistribution,
    PriorContrastELBO,
    SpreadELBO,
)

pytestmark = pytest.mark.usefixtures("double")

# --- everything at once: hierarchy, global and local, with and without density

MIXED = {"mw": 0.2, "mv": -0.3, **VALUES}


def handler(how):
    mask = torch.tensor([True, False, True, True])
    return {
        "none": lambda: poutine.mask(mask=True),
        "mask": lambda: poutine.mask(mask=mask),
        "scale": lambda: poutine.scale(scale=torch.tensor([1.0, 0.5, 2.0, 3.0])),
        "number": lambda: poutine.scale(scale=0.3),
        "both": lambda: poutine.mask(mask=~mask),
    }[how]()


def subplate(x):
    return pyro.plate("data", len(x), subsample_size=4, dim=-1)


def mixed_model(x, how="none"):
    mu = param("mu")
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    v = pyro.sample("v", dist.Normal(mu + w, 1.0))
    with subplate(x) as indices, handler(how), handler("number" if how == "both" else "none"):
        z = pyro.sample("z", dist.Normal(mu * w + v, 1.0))
        a = pyro.sample("a", dist.Normal(z, 2.0))
        pyro.sample("x", dist.Normal(a + z, 0.5), obs=x[indices])


def log_q(site, p, value, w, x=None):
    if site == "v":
        return normal(value, p["mv"] + 0.3 * w, 0.4)
    return normal(value, p["m"] * x + w, p["s"])


def mixed_guide(x, how="none", twin=False, dense=False):
    p = {name: param(name, MIXED[name]) for name in ("mw", "mv", "m", "s")}
    q = {name: value.detach() for name, value in p.items()}
    base = dist.Normal(torch.zeros(()), 1.0)

    def implicit(site, loc, scale, x):
        if dense:
            return dist.Normal(loc, scale)
        fn = functools.partial(lambda loc, scale, eps: loc + scale * eps, loc, scale)
        if twin:
            return Known(fn, base, (), lambda value: log_q(site, q, value, w, x))
        return ImplicitDistribution(fn, base, ())

    w = pyro.sample("w", dist.Normal(p["mw"], 0.5))
    pyro.sample("v", implicit("v", p["mv"] + 0.3 * w, torch.tensor(0.4), None))
    with subplate(x) as indices, handler(how), handler("number" if how == "both" else "none"):
        at = x[indices]
        z = pyro.sample("z", implicit("z", p["m"] * at + w, p["s"], at))
        pyro.sample("a", dist.Normal(0.5 * z, 0.3))


def critic_v(values, *args, **kwargs):
    w = values.arguments["w"]
    assert not {"v", "z", "a"} & set(values.arguments)
    return log_q("v", MIXED, values["v"], w) - normal(values["v"], MIXED["mu"] + w, 1.0)


def critic_z(values, *args, **kwargs):
    w, v, x = (values.arguments[name] for name in ("w", "v", "x"))
    assert w.shape == v.shape == x.shape == values["z"].shape
    assert "a" not in values.arguments
    return log_q("z", MIXED, values["z"], w, x) - normal(values["z"], MIXED["mu"] * w + v, 1.0)


class Head(nn.Module):
    """The wrong Gaussian, on purpose."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.1))

    def forward(self, x, how="none"):
        scale = torch.full((), 0.9)
        return {"v": (self.loc, scale), "z": (0.5 * x + self.loc, scale - 0.1)}


def against_head(site):
    def fn(values, *args, **kwargs):
        x = values.arguments["x"] if site == "z" else None
        loc, scale = (0.1, 0.9) if site == "v" else (0.5 * x + 0.1, 0.8)
        value = loc + scale * values[site]
        return log_q(site, MIXED, value, values.arguments["w"], x) - normal(value, loc, scale)

    return fn


def mixed_loss(contrast, **options):
    if contrast == "prior":
        critics = {"v": Told(critic_v), "z": Told(critic_z)}
        return PriorContrastELBO(critics, adaptive=False, **options)
    critics = {"v": Told(against_head("v")), "z": Told(against_head("z"))}
    return PriorContrastELBO(critics, head=Head(), **options)


PARTICLES = {
    "one": {},
    "three": {"num_particles": 3},
    "at once": {"num_particles": 3, "vectorize_particles": True},
    "nesting": {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1},
}


@pytest.mark.parametrize("how", ["none", "mask", "scale", "number", "both"])
@pytest.mark.parametrize("contrast", ["prior", "head"])
@pytest.mark.parametrize("particles", ["one", "three", "at once"])
def test_mixed_sites_equal_the_twin_that_has_a_density(contrast, how, particles):
    twin = functools.partial(mixed_guide, twin=True)
    options = PARTICLES[particles]
    x = data()
    ours = value_and_grads(mixed_loss(contrast, **options), mixed_model, mixed_guide, x, how)
    stock = value_and_grads(Trace_ELBO(**options), mixed_model, twin, x, how)
    assert_equal(ours, stock)
    if how == "none":  # other draws give other values: the comparison says something
        other = value_and_grads(Trace_ELBO(**options), mixed_model, twin, x, how, seed=1)
        assert abs(other[0] - stock[0]) > 0.1


@pytest.mark.parametrize("how", ["none", "mask", "scale"])
@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("adaptive", [True, False])
def test_without_implicit_sites_it_is_the_stock_elbo(how, particles, adaptive):
    dense = functools.partial(mixed_guide, dense=True)
    options, x = PARTICLES[particles], data()
    loss = PriorContrastELBO(Told(total), adaptive=adaptive, **options)
    ours = value_and_grads(loss, mixed_model, dense, x, how)
    stock = Trace_ELBO(**options)
    assert_equal(ours, value_and_grads(stock, mixed_model, dense, x, how), 1e-12)
    assert ours[1]["discriminator$$$gain"] is None
    values = []
    for method in (loss.loss, loss.differentiable_loss, stock.loss):
        pyro.set_rng_seed(3)
        values.append(torch.as_tensor(method(mixed_model, dense, x, how)).item())
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)


@pytest.mark.parametrize("implicit", [False, True])
def test_the_loss_as_a_module_is_the_same(implicit):
    class Model(nn.Module):
        def forward(self, x):
            model(x)

    class Guide(nn.Module):
        def forward(self, x):
            if implicit:
                guide(x)
            else:
                with pyro.plate("data", len(x)):
                    pyro.sample("z", dist.Normal(param("m") * x, param("s")))

    loss = PriorContrastELBO(Told(log_ratio), adaptive=False)
    pyro.set_rng_seed(0)
    value = loss(Model(), Guide())(data())
    value.backward()
    grads = {name: p.grad.clone() for name, p in pyro.get_param_store()._params.items()}
    grads["discriminator$$$gain"], loss.discriminator.gain.grad = loss.discriminator.gain.grad, None
    stock = loss if implicit else Trace_ELBO()
    assert_equal((value.item(), grads), value_and_grads(stock, model, Guide(), data()), 1e-12)


# --- noise


@pytest.mark.parametrize("likelihood", [dist.Delta, DeterministicGenerator])
@pytest.mark.parametrize("particles", ["one", "three", "at once"])
def test_noise_is_that_of_the_spread_elbo(likelihood, particles):
    handed = {"model": [], "guide": []}

    def spread_model(x):
        handed["model"].append(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(param("mu"), 1.0))
            pyro.sample("x", likelihood(2 * z), obs=x)

    def spread_guide(x, twin=False):
        handed["guide"].append(x)
        guide(x, twin)

    def critic(values, y):
        assert torch.equal(values.arguments["x"], y)
        return log_ratio(values, y)

    noise, options, x = {"x": GaussianNoise(0.3)}, PARTICLES[particles], data()
    # Noise makes particles come one by one: each has its own data.
    loss = PriorContrastELBO(Told(critic), noise, adaptive=False, num_critic_draws=1, **options)
    pyro.set_rng_seed(0)
    loss.loss(spread_model, spread_guide, x)
    count = options.get("num_particles", 1)
    assert handed["guide"].pop(0) is x  # a look for deltas, at the data as they are
    assert len(handed["guide"]) == len({float(y[0]) for y in handed["guide"]}) == count
    for y in handed["guide"]:
        assert 0.05 < (y - x).std() < 0.6
    # The model may run again, for the gradient of the prior.
    assert {id(y) for y in handed["model"]} == {id(y) for y in handed["guide"]}
    ours = value_and_grads(loss, spread_model, spread_guide, x)
    looped = Trace_ELBO(num_particles=options.get("num_particles", 1))
    stock = SpreadELBO(noise, looped)
    twin = functools.partial(spread_guide, twin=True)
    assert_equal(ours, value_and_grads(stock, spread_model, twin, x))
