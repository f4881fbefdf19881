# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The loss has a twin: with the same draws injected, the same value and the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import numpyro.infer
import pyro
import pyro.distributions as pyro_dist
import pyro.infer
import pytest
import torch
from jax.tree_util import Partial
from scipy.special import logsumexp
from scipy.stats import norm

import numpyro_spread
import pyro_spread

RNG = np.random.default_rng(2)
N, D, K = 4, 2, 5
DATA = np.abs(RNG.normal(size=(N, D))) + 0.2
EPS = RNG.normal(size=(K + 1, N, D))
NOISE = RNG.normal(size=(N, D))
PARAMS = {"W": RNG.normal(size=(D, D)), "b": RNG.normal(size=D), "scale": 0.2 + RNG.random(D)}


class InjectedTorchNormal(pyro_dist.Normal):
    """Draws the given numbers: for the guide when K + 1 are asked for, else for the kernel."""

    def rsample(self, sample_shape=()):
        given = {(K + 1,): EPS, (): NOISE}[tuple(sample_shape)]
        return self.loc + self.scale * torch.as_tensor(given)

    def expand(self, batch_shape, _instance=None):
        return InjectedTorchNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class InjectedJaxNormal(numpyro_dist.Normal):
    """Its twin."""

    def sample(self, key, sample_shape=()):
        given = {(K + 1,): EPS, (): NOISE}[tuple(sample_shape)]
        return self.loc + self.scale * jnp.asarray(given)


class InjectedTorchNoise(pyro_spread.GaussianNoise):
    def _around(self, x, scale, validate_args=None):
        return InjectedTorchNormal(x, scale)


class InjectedJaxNoise(numpyro_spread.GaussianNoise):
    def _around(self, x, *parameters):
        return InjectedJaxNormal(x, *parameters)


def torch_pair(size, prior):
    def model(x):
        with pyro.plate("data", size, subsample_size=N):
            z = pyro.sample("z", prior(torch.zeros(N, D)).to_event(1))
            pyro.sample("x", pyro_dist.Normal(z.tanh(), 0.5).to_event(1), obs=x)

    def guide(x):
        W = pyro.param("W", torch.tensor(PARAMS["W"]))
        b = pyro.param("b", torch.tensor(PARAMS["b"]))
        base = InjectedTorchNormal(torch.zeros(N, D), torch.ones(N, D)).to_event(1)

        def fn(eps):
            u = x @ W + b * eps
            return u.exp() if prior is pyro_log_normal else u

        with pyro.plate("data", size, subsample_size=N):
            pyro.sample("z", pyro_spread.ImplicitDistribution(fn, base, (D,)))

    def noise(x):
        return {"z": InjectedTorchNoise(pyro.param("scale", torch.tensor(PARAMS["scale"])))}

    return model, guide, noise


def jax_pair(size, prior):
    def model(x):
        with numpyro.plate("data", size, subsample_size=N):
            z = numpyro.sample("z", prior(jnp.zeros((N, D))).to_event(1))
            numpyro.sample("x", numpyro_dist.Normal(jnp.tanh(z), 0.5).to_event(1), obs=x)

    def guide(x):
        W = numpyro.param("W", jnp.asarray(PARAMS["W"]))
        b = numpyro.param("b", jnp.asarray(PARAMS["b"]))
        base = InjectedJaxNormal(jnp.zeros((N, D)), 1.0).to_event(1)

        def fn(W, b, eps):
            u = x @ W + b * eps
            return jnp.exp(u) if prior is numpyro_log_normal else u

        with numpyro.plate("data", size, subsample_size=N):
            implicit = numpyro_spread.ImplicitDistribution(Partial(fn, W, b), base, (D,))
            numpyro.sample("z", implicit)

    def noise(x):
        return {"z": InjectedJaxNoise(numpyro.param("scale", jnp.asarray(PARAMS["scale"])))}

    return model, guide, noise


def pyro_normal(loc):
    return pyro_dist.Normal(loc, 1.0)


def pyro_log_normal(loc):
    return pyro_dist.LogNormal(loc, 1.0)


def numpyro_normal(loc):
    return numpyro_dist.Normal(loc, 1.0)


def numpyro_log_normal(loc):
    return numpyro_dist.LogNormal(loc, 1.0)


PRIORS = {
    "real": (pyro_normal, numpyro_normal),
    "positive": (pyro_log_normal, numpyro_log_normal),
}
ELBOS = {
    "Trace": lambda infer: infer.Trace_ELBO(),
    "TraceMeanField": lambda infer: infer.TraceMeanField_ELBO(),
    "TraceGraph": lambda infer: infer.TraceGraph_ELBO(),
}


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("support", PRIORS)
@pytest.mark.parametrize("size", [N, 10 * N], ids=["full", "mini-batch"])
def test_value_and_gradients(elbo, support, size):
    model, guide, noise = torch_pair(size, PRIORS[support][0])
    ours = pyro_spread.SemiImplicitELBO(noise, K, ELBOS[elbo](pyro.infer))
    value = ours.loss_and_grads(model, guide, torch.tensor(DATA))
    store = pyro.get_param_store()
    grads = {name: store[name].unconstrained().grad for name in PARAMS}

    model, guide, noise = jax_pair(size, PRIORS[support][1])
    theirs = numpyro_spread.SemiImplicitELBO(noise, K, ELBOS[elbo](numpyro.infer))
    params = {name: jnp.asarray(v) for name, v in PARAMS.items()}

    def loss(params):
        return theirs.loss(jax.random.key(0), params, model, guide, jnp.asarray(DATA))

    other_value, other_grads = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, other_value, rtol=1e-10)
    for name in PARAMS:
        np.testing.assert_allclose(grads[name].numpy(), other_grads[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("support", PRIORS)
def test_the_value_is_that_of_the_formula(support):
    """Against the bound written by hand, so that the twins cannot agree on an error."""
    model, guide, noise = torch_pair(N, PRIORS[support][0])
    value = pyro_spread.SemiImplicitELBO(noise, K).loss(model, guide, torch.tensor(DATA))
    psi = DATA @ PARAMS["W"] + PARAMS["b"] * EPS
    u = psi[0] + PARAMS["scale"] * NOISE
    z = np.exp(u) if support == "positive" else u
    # The prior of u is the same for both supports: the Jacobians of prior and guide cancel.
    log_joint = norm.logpdf(u).sum() + norm.logpdf(DATA, np.tanh(z), 0.5).sum()
    log_q = logsumexp(norm.logpdf(u, psi, PARAMS["scale"]).sum(-1), axis=0) - np.log(K + 1)
    np.testing.assert_allclose(-value, log_joint - log_q.sum(), rtol=1e-10)


def test_errors_read_alike():
    model, guide, _ = torch_pair(N, pyro_normal)
    noise = {"z": InjectedTorchNoise(0.3), "w": pyro_spread.GaussianNoise(0.3)}
    loss = pyro_spread.SemiImplicitELBO(noise, K)
    with pytest.raises(ValueError, match="names the site 'w'") as ours:
        loss.loss(model, guide, torch.tensor(DATA))
    model, guide, _ = jax_pair(N, numpyro_normal)
    params = {name: jnp.asarray(v) for name, v in PARAMS.items()}
    noise = {"z": InjectedJaxNoise(0.3), "w": numpyro_spread.GaussianNoise(0.3)}
    loss = numpyro_spread.SemiImplicitELBO(noise, K)
    with pytest.raises(ValueError, match="names the site 'w'") as theirs:
        loss.loss(jax.random.key(0), params, model, guide, jnp.asarray(DATA))
    assert str(ours.value).startswith(str(theirs.value))
