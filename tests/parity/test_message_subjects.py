# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages that are about the right thing, in the same words in both backends."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as ndist
import optax
import pyro
import pytest
from jax import random
from numpyro.infer.autoguide import AutoNormal
from twins import Pyro, in_both, no_guide

import numpyro_spread as ns


def raised(call, error):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value).partition("\n")[0]


def step(b, name):
    """One step with a critic or without, on an observed discrete site."""
    p = b.package
    net = b.pick(lambda: p.ratio.MLPCritic(hidden=[4]), lambda: p.ratio.MLPCritic([4]))()
    loss = {
        "MMD": lambda: p.MMD(p.GaussianKernel(1.0)),
        "energy": p.EnergyDistance,
        "sliced": p.SlicedWasserstein,
        "adversarial": lambda: p.AdversarialDivergence(p.concat_sites(net, "x")),
        "wasserstein": lambda: p.WassersteinCritic(p.concat_sites(net, "x")),
        "joint": lambda: p.JointContrastELBO(p.concat_sites(net, "x", "z")),
    }[name]()

    def model(x):
        probs = b.param("p", [0.0] * 3)
        with b.plate("data", len(x)):
            z = b.sample("z", b.dist.Normal(b.np.zeros(()), 1.0))
            b.sample("x", b.dist.Bernoulli(logits=probs + 0 * z[..., None]).to_event(1), obs=x)

    def guide(x):
        loc = b.param("loc", 0.0)
        with b.plate("data", len(x)):
            b.sample("z", b.dist.Normal(loc, 1.0))

    guide, x = guide if name == "joint" else no_guide, b.np.ones((20, 3))
    if b is Pyro:
        pyro.clear_param_store()
        pyro.infer.SVI(model, guide, pyro.optim.Adam({}), loss).step(x)
    else:
        svi = numpyro.infer.SVI(model, loss.register(model, guide), optax.adam(0.1), loss)
        svi.update(svi.init(random.key(0), x), x)


@pytest.mark.parametrize("name", ["MMD", "energy", "sliced", "adversarial", "wasserstein", "joint"])
@in_both
def test_an_observed_discrete_site_is_no_latent(b, name):
    text = raised(lambda: step(b, name), NotImplementedError)
    assert "latent" not in text
    assert "site 'x': draws of Bernoulli" in text
    assert "are discrete or not reparametrised" in text


def identity(eps):
    return eps


@in_both
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"fn": 3}, ["fn must be callable", "got 3"]),
        (
            {"base_dist": "zeros"},
            ["base_dist must be a ", ".distributions.Distribution", "to_event"],
        ),
        ({"event_shape": 3}, ["event_shape must be a tuple", "such as (3,)", "got 3"]),
        ({"event_shape": (3.0,)}, ["event_shape must be a tuple", "got (3.0,)"]),
    ],
    ids=["fn", "base", "int", "float"],
)
def test_arguments_of_an_implicit_distribution(b, change, parts):
    given = {
        "fn": identity,
        "base_dist": b.dist.Normal(b.np.zeros(3), 1.0).to_event(1),
        "event_shape": (3,),
    }
    given |= {key: b.np.zeros(3) if value == "zeros" else value for key, value in change.items()}
    text = raised(lambda: b.package.ImplicitDistribution(**given), TypeError)
    for part in parts:
        assert part in text


def test_the_gradient_of_an_implicit_distribution_is_not_exchanged():
    base = Pyro.dist.Normal(Pyro.np.zeros(3), 1.0).to_event(1)
    fn = Pyro.package.ImplicitDistribution(identity, base, (3,))
    assert fn.has_rsample_(True) is fn
    text = raised(lambda: fn.has_rsample_(False), NotImplementedError)
    assert "those of base_dist" in text


@pytest.mark.parametrize("delta", [ndist.Delta, ns.DeterministicGenerator])
def test_an_autoguide_of_an_unspread_model_names_the_spread_one(delta):
    def model(x):
        z = numpyro.sample("z", ndist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", delta(z * jnp.ones(len(x))), obs=x)

    noise, x = {"x": ns.GaussianNoise(0.3)}, jnp.arange(5.0)
    loss = ns.SpreadELBO(noise)

    def init(guide):
        svi = numpyro.infer.SVI(model, loss.register(model, guide), optax.adam(0.1), loss)
        return svi.update(svi.init(random.key(0), x), x)[1]

    text = raised(lambda: init(AutoNormal(model)), RuntimeError)
    assert "AutoNormal(spread(model, noise))" in text
    assert jnp.isfinite(init(AutoNormal(ns.spread(model, noise))))


@in_both
def test_the_density_of_a_generator_names_the_autoguide_too(b):
    fn = b.package.DeterministicGenerator(b.np.zeros(3))
    text = raised(lambda: fn.log_prob(b.np.zeros(3)), NotImplementedError)
    assert "AutoNormal(spread(model, noise))" in text
