# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Adversarial losses: the same weights and draws give the same value and the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from flax import linen
from torch import nn

import numpyro_spread
import pyro_spread

RNG = np.random.default_rng(4)
X, EPS = RNG.normal(size=(12, 2)), RNG.normal(size=(9, 3))
START = RNG.normal(size=(3, 2))
WEIGHTS = RNG.normal(size=(2, 5)), RNG.normal(size=5), RNG.normal(size=(5, 1)), RNG.normal(size=1)
MASK = RNG.random((9, 2)) < 0.7
SCALE = 0.5 + RNG.random(9)
CRITIC = "discriminator$params"


class FlaxNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        hidden = jnp.tanh(linen.Dense(5)(x))
        return linen.Dense(1)(hidden)


def _in_pyro(make, options, weighted):
    """Value, the generator's gradient, and the critic's in the order of WEIGHTS."""
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    with torch.no_grad():
        for param, value in zip(net.parameters(), WEIGHTS, strict=True):
            param.copy_(torch.as_tensor(value.T))

    def model(x, eps):
        w = pyro.param("w", torch.tensor(START))
        with pyro.plate("data", len(eps)):
            fn = pyro_dist.Delta(torch.tanh(eps @ w)).to_event(1)
            if weighted:
                fn = pyro_dist.Delta(torch.tanh(eps @ w)).mask(torch.tensor(MASK)).to_event(1)
                with pyro.poutine.scale(scale=torch.tensor(SCALE)):
                    pyro.sample("x", fn, obs=x)
            else:
                pyro.sample("x", fn, obs=x)

    loss = make(pyro_spread, pyro_spread.concat_sites(net, "x"), options)
    x = torch.tensor(X[: len(EPS)] if weighted else X)
    value = loss.loss_and_grads(model, lambda *args: None, x, torch.tensor(EPS))
    critic = [param.grad.numpy().T for param in net.parameters()]
    return value, pyro.get_param_store()._params["w"].grad.numpy(), critic


def _in_numpyro(make, options, weighted):
    def model(x, eps):
        w = numpyro.param("w", START)
        with numpyro.plate("data", len(eps)):
            delta = numpyro_dist.Delta(jnp.tanh(eps @ w))
            if weighted:
                with numpyro.handlers.scale(scale=jnp.asarray(SCALE)):
                    numpyro.sample("x", delta.mask(jnp.asarray(MASK)).to_event(1), obs=x)
            else:
                numpyro.sample("x", delta.to_event(1), obs=x)

    loss = make(numpyro_spread, numpyro_spread.concat_sites(FlaxNet(), "x"), options)
    arrays = [jnp.asarray(value) for value in WEIGHTS]
    params = {
        "w": jnp.asarray(START),
        CRITIC: {
            "Dense_0": {"kernel": arrays[0], "bias": arrays[1]},
            "Dense_1": {"kernel": arrays[2], "bias": arrays[3]},
        },
    }
    x = jnp.asarray(X[: len(EPS)] if weighted else X)

    def value(params):
        return loss.loss(jax.random.key(0), params, model, lambda *args: None, x, jnp.asarray(EPS))

    result, grads = jax.value_and_grad(value)(params)
    layers = grads[CRITIC]["Dense_0"], grads[CRITIC]["Dense_1"]
    return float(result), grads["w"], [layer[key] for layer in layers for key in ("kernel", "bias")]


def _adversarial(divergence, generator="divergence"):
    def make(package, critic, options):
        options = {"generator": generator, **options(package)}
        return package.AdversarialDivergence(critic, divergence(package), **options)

    return make


def _wasserstein(package, critic, options):
    return package.WassersteinCritic(critic, gradient_penalty=0)


LOSSES = {
    "js.1": _adversarial(lambda p: p.JSPi(0.1)),
    "js.9": _adversarial(lambda p: p.JSPi(0.9)),
    "js-normalised": _adversarial(lambda p: p.JSPi(0.3, normalised=True)),
    "non-saturating": _adversarial(lambda p: p.JSPi(0.3), "non_saturating"),
    "non-saturating-kl": _adversarial(lambda p: p.KL(), "non_saturating"),
    "kl": _adversarial(lambda p: p.KL()),
    "reverse-kl": _adversarial(lambda p: p.ReverseKL()),
    "hellinger": _adversarial(lambda p: p.SquaredHellinger()),
    "chi2": _adversarial(lambda p: p.ChiSquared()),
    "reverse-chi2": _adversarial(lambda p: p.ReverseChiSquared()),
    "jeffreys": _adversarial(lambda p: p.Jeffreys()),
    "variation": _adversarial(lambda p: p.TotalVariation(), "non_saturating"),
    "wasserstein": _wasserstein,
}
OPTIONS = {
    "smoothing": lambda p: {"label_smoothing": 0.1},
    "r1": lambda p: {"regularizer": p.R1(2.0)},
    "two-pass": lambda p: {"update": "two_pass"},
}


def _compare(make, options, weighted):
    one, other = _in_pyro(make, options, weighted), _in_numpyro(make, options, weighted)
    tolerance = {"rtol": 1e-10, "atol": 1e-13}
    np.testing.assert_allclose(one[0], other[0], **tolerance)
    np.testing.assert_allclose(one[1], other[1], **tolerance)
    assert np.abs(one[1]).max() > 0
    for left, right in zip(one[2], other[2], strict=True):
        np.testing.assert_allclose(left, right, **tolerance)
        assert np.abs(left).max() > 0 or left.size == 1


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_both_gradients(name):
    _compare(LOSSES[name], lambda package: {}, False)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, weighted):
    _compare(LOSSES["js.1"], OPTIONS[option], weighted)
