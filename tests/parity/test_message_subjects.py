# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Messages that are about the right thing, in the same words in both backends."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as ndist
import optax
import pyro
import pyro.distributions as tdist
import pytest
import torch
from jax import random
from numpyro.infer.autoguide import AutoNormal

import numpyro_spread as ns
import pyro_spread as ts

BACKENDS = {"pyro": (ts, tdist, torch.zeros), "numpyro": (ns, ndist, jnp.zeros)}


def raised(call, error):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value).partition("\n")[0]


def discrete_model(sample, param, plate, dist, zeros):
    def model(x):
        probs = param("p", zeros(3))
        with plate("data", len(x)):
            z = sample("z", dist.Normal(zeros(()), 1.0))
            logits = probs + 0 * z[..., None]
            sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    return model


def guide_of(sample, param, plate, dist, zeros):
    def guide(x):
        loc = param("loc", zeros(()))
        with plate("data", len(x)):
            sample("z", dist.Normal(loc, 1.0))

    return guide


def losses(package, ratio):
    critic = package.concat_sites(ratio, "x")
    both = package.concat_sites(ratio, "x", "z")
    return {
        "MMD": (package.MMD(package.GaussianKernel(1.0)), False),
        "energy": (package.EnergyDistance(), False),
        "sliced": (package.SlicedWasserstein(), False),
        "adversarial": (package.AdversarialDivergence(critic), False),
        "wasserstein": (package.WassersteinCritic(critic), False),
        "joint": (package.JointContrastELBO(both), True),
    }


def pyro_says(name):
    pyro.clear_param_store()
    loss, has_guide = losses(ts, ts.ratio.MLPCritic(hidden=[4]))[name]
    parts = pyro.sample, pyro.param, pyro.plate, tdist, torch.zeros
    guide = guide_of(*parts) if has_guide else lambda x: None
    svi = pyro.infer.SVI(discrete_model(*parts), guide, pyro.optim.Adam({}), loss)
    return raised(lambda: svi.step(torch.ones(20, 3)), NotImplementedError)


def numpyro_says(name):
    loss, has_guide = losses(ns, ns.ratio.MLPCritic([4]))[name]
    parts = numpyro.sample, numpyro.param, numpyro.plate, ndist, jnp.zeros
    model = discrete_model(*parts)
    guide = guide_of(*parts) if has_guide else lambda x: None
    svi = numpyro.infer.SVI(model, loss.register(model, guide), optax.adam(0.1), loss)
    x = jnp.ones((20, 3))
    return raised(lambda: svi.update(svi.init(random.key(0), x), x), NotImplementedError)


@pytest.mark.parametrize("name", ["MMD", "energy", "sliced", "adversarial", "wasserstein", "joint"])
@pytest.mark.parametrize("says", [pyro_says, numpyro_says])
def test_an_observed_discrete_site_is_no_latent(says, name):
    text = says(name)
    assert "latent" not in text
    assert "site 'x': draws of Bernoulli" in text
    assert "are discrete or not reparametrised" in text


def identity(eps):
    return eps


@pytest.mark.parametrize("backend", BACKENDS)
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
def test_arguments_of_an_implicit_distribution(backend, change, parts):
    package, dist, zeros = BACKENDS[backend]
    given = {
        "fn": identity,
        "base_dist": dist.Normal(zeros(3), 1.0).to_event(1),
        "event_shape": (3,),
    }
    given |= {key: zeros(3) if value == "zeros" else value for key, value in change.items()}
    text = raised(lambda: package.ImplicitDistribution(**given), TypeError)
    for part in parts:
        assert part in text


def test_the_gradient_of_an_implicit_distribution_is_not_exchanged():
    fn = ts.ImplicitDistribution(identity, tdist.Normal(torch.zeros(3), 1.0).to_event(1), (3,))
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_density_of_a_generator_names_the_autoguide_too(backend):
    package, _, zeros = BACKENDS[backend]
    fn = package.DeterministicGenerator(zeros(3))
    text = raised(lambda: fn.log_prob(zeros(3)), NotImplementedError)
    assert "AutoNormal(spread(model, noise))" in text
