# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Predictive, NUTS, evidence, calibration and posterior estimation of a model in scan."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers, infer
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, Predictive
from numpyro_walk import KEY, N, T, X, no_guide, over_time, walk

from numpyro_spread import (
    KL,
    GaussianNoise,
    JointContrastELBO,
    ais_log_likelihood,
    importance_weighted_bound,
    simulation_based_calibration,
    spread,
)


def hmm(x):
    transition = jnp.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])

    def body(k, xt):
        with numpyro.plate("N", N):
            k = numpyro.sample("k", dist.Categorical(transition[k]))
            numpyro.sample("x", dist.Normal(jnp.array([-1.0, 0.0, 2.0])[k], 0.5), obs=xt)
        return k, None

    scan(body, jnp.zeros(N, int), x)
    return transition


def test_the_handler_spreads_the_first_steps_of_an_enumerated_scan():
    from numpyro.contrib.funsor import config_enumerate, enum, infer_util

    means, transition = np.array([-1.0, 0.0, 2.0]), np.asarray(hmm_transition())
    expected = 0.0
    for n in range(N):
        paths = []
        for path in itertools.product(range(3), repeat=T):
            states = (0, *path)
            chain = np.prod([transition[a, b] for a, b in itertools.pairwise(states)])
            noisy = dist.Normal(means[list(path)], np.sqrt(0.25 + 0.09)).log_prob(X[:, n]).sum()
            paths.append(chain * np.exp(noisy))
        expected += np.log(sum(paths))
    model = enum(config_enumerate(spread(hmm, {"x": GaussianNoise(0.3)})), -2)
    value, _ = infer_util.log_density(model, (X,), {}, {})
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def hmm_transition():
    with handlers.seed(rng_seed=0):
        return hmm(X)


@pytest.mark.slow
def test_predictive_and_nuts_on_a_spread_scan():
    def delta(previous, xt):
        z = numpyro.sample("z", dist.Normal(0.5 * previous, 1.0))
        numpyro.sample("x", dist.Delta(z), obs=xt)
        return z

    model = spread(over_time(delta), {"x": GaussianNoise(0.3)})
    mcmc = infer.MCMC(infer.NUTS(model), num_warmup=20, num_samples=20, progress_bar=False)
    mcmc.run(KEY, X)
    assert mcmc.get_samples()["z"].shape == (20, T, N)
    value, _ = infer.util.log_density(model, (X,), {}, {"z": X})
    np.testing.assert_allclose(
        value,
        dist.Normal(0.0, 0.3).log_prob(jnp.zeros((T, N))).sum()
        + dist.Normal(0.0, 1.0).log_prob(X[0]).sum()
        + dist.Normal(0.5 * X[:-1], 1.0).log_prob(X[1:]).sum(),
        rtol=1e-5,
    )


def bounded(previous, xt):
    """Its support moves with the step before."""
    z = numpyro.sample("z", dist.Uniform(jnp.zeros(N), 1.0 + jnp.abs(previous)))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=xt)
    return z


@pytest.mark.slow
def test_evidence_of_a_scan_is_that_of_the_loop():
    def loop(x):
        previous = jnp.zeros(N)
        with numpyro.plate("N", N):
            for t in range(T):
                z = numpyro.sample(f"z{t}", dist.Uniform(jnp.zeros(N), 1.0 + jnp.abs(previous)))
                numpyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[t])
                previous = z

    options = {"num_temperatures": 40, "num_chains": 48, "num_leapfrog": 2}
    values = [
        ais_log_likelihood(KEY, {}, m, X, **options).values for m in (over_time(bounded), loop)
    ]
    assert values[0].shape == (N,)
    np.testing.assert_allclose(values[0], values[1], atol=0.1)
    bound = importance_weighted_bound(KEY, {}, over_time(bounded), no_guide, X, num_samples=4000)
    np.testing.assert_allclose(bound.values, values[1], atol=0.1)


def test_calibration_of_a_scan_counts_series():
    def model(previous, xt):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=xt)
        return previous

    def guide(previous, xt):
        return numpyro.sample("z", dist.Normal(xt / 2, 0.5**0.5))

    x = jnp.zeros((T, N))
    report = simulation_based_calibration(
        KEY, {}, over_time(model), over_time(guide), x, num_simulations=200, num_draws=19
    )
    assert report.ranks["z"].shape == (200, T)
    assert report.p_value() > 1e-3


def test_posterior_estimation_of_a_scan():
    model = over_time(walk)

    def guide(x):
        w = numpyro.param("w", 0.0)
        over_time(lambda previous, xt: numpyro.sample("z", dist.Normal(w * xt, 1.0)))(x)

    loss = JointContrastELBO(divergence=KL())
    svi = SVI(model, loss.register(model, guide), optax.adam(0.1), loss)
    params = svi.run(KEY, 100, jnp.zeros((T, N)), progress_bar=False).params
    assert 0.4 < params["w"] < 0.8
    draws = Predictive(guide, params=params, num_samples=2)(KEY, X)
    assert draws["z"].shape == (2, T, N)
