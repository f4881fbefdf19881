# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The loss has a twin: with the same draws injected, the same value and the same gradients."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm
from twins import Pyro, assert_refused_alike, compare, numbers, rows

RNG = np.random.default_rng(2)
N, D, K = 4, 2, 5
DATA = np.abs(RNG.normal(size=(N, D))) + 0.2
EPS, NOISE = rows("z", 0, K + 1, (N, D)), numbers("noisy", N, D)
PARAMS = {"W": RNG.normal(size=(D, D)), "b": RNG.normal(size=D), "scale": 0.2 + RNG.random(D)}


def program(b, size, support):
    """Model, guide and noise; the draws of the guide are EPS, those of the noise NOISE."""
    prior, positive = getattr(b.dist, PRIORS[support]), support == "positive"

    def model(x):
        with b.plate("data", size, subsample_size=N):
            z = b.sample("z", prior(b.np.zeros((N, D)), 1.0).to_event(1))
            b.sample("x", b.dist.Normal(b.np.tanh(z), 0.5).to_event(1), obs=x)

    def guide(x):
        base = b.normal("z", b.np.zeros((N, D)), 1.0).to_event(1)

        def fn(W, bias, eps):
            u = x @ W + bias * eps
            return b.np.exp(u) if positive else u

        fn = b.partial(fn, *(b.param(name, PARAMS[name]) for name in ("W", "b")))
        with b.plate("data", size, subsample_size=N):
            b.sample("z", b.package.ImplicitDistribution(fn, base, (D,)))

    return model, guide, lambda x: {"z": b.noise(b.param("scale", PARAMS["scale"]))}


PRIORS = {"real": "Normal", "positive": "LogNormal"}
ELBOS = {
    "Trace": lambda infer: infer.Trace_ELBO(),
    "TraceMeanField": lambda infer: infer.TraceMeanField_ELBO(),
    "TraceGraph": lambda infer: infer.TraceGraph_ELBO(),
}


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("support", PRIORS)
@pytest.mark.parametrize("size", [N, 10 * N], ids=["full", "mini-batch"])
def test_value_and_gradients(elbo, support, size):
    def result(b):
        model, guide, noise = program(b, size, support)
        loss = b.package.SemiImplicitELBO(noise, K, ELBOS[elbo](b.infer))
        return b.loss_and_grads(loss, model, guide, DATA, params=PARAMS)

    compare(result)


@pytest.mark.parametrize("support", PRIORS)
def test_the_value_is_that_of_the_formula(support):
    """Against the bound written by hand, so that the twins cannot agree on an error."""
    model, guide, noise = program(Pyro, N, support)
    loss = Pyro.package.SemiImplicitELBO(noise, K)
    value = Pyro.loss(loss, model, DATA, guide=guide)
    psi = DATA @ PARAMS["W"] + PARAMS["b"] * EPS
    u = psi[0] + PARAMS["scale"] * NOISE
    z = np.exp(u) if support == "positive" else u
    # The prior of u is the same for both supports: the Jacobians of prior and guide cancel.
    log_joint = norm.logpdf(u).sum() + norm.logpdf(DATA, np.tanh(z), 0.5).sum()
    log_q = logsumexp(norm.logpdf(u, psi, PARAMS["scale"]).sum(-1), axis=0) - np.log(K + 1)
    np.testing.assert_allclose(-value, log_joint - log_q.sum(), rtol=1e-10)


def test_errors_read_alike():
    def mistake(b):
        model, guide, _ = program(b, N, "real")
        noise = {"z": b.noise(0.3), "w": b.package.GaussianNoise(0.3)}
        loss = b.package.SemiImplicitELBO(noise, K)
        b.loss(loss, model, DATA, guide=guide, params=PARAMS)

    assert_refused_alike(mistake, "names the site 'w'", ValueError, lengthened=True)
