# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation counts what there is: no repeats of a table, nothing that a mask leaves out."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers

from numpyro_spread import (
    ais_log_likelihood,
    importance_weighted_bound,
    simulation_based_calibration,
)
from spread_analysis import reference as ref

RNG = np.random.default_rng(0)
THETA = jnp.asarray(RNG.standard_normal(100), jnp.float32)
X = THETA + 0.5 * jnp.asarray(RNG.standard_normal(100), jnp.float32)
KEY = random.key(0)
QUICK = {"num_temperatures": 40, "num_leapfrog": 4}


def table_model(x, theta):
    with numpyro.plate("data", len(x)):
        numpyro.sample("theta", dist.Delta(theta))
        numpyro.sample("x", dist.Delta(x), obs=x)


def half_a_table(x, theta):
    with numpyro.plate("data", len(x)):
        numpyro.sample("theta", dist.Delta(theta))
        numpyro.sample("x", dist.Normal(theta, 0.5), obs=x)


def prior_model(x, ok=None):
    with numpyro.plate("data", len(x)), handlers.mask(mask=True if ok is None else ok):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(theta, 0.5), obs=x)


def failing_model(x):
    with numpyro.plate("data", len(x)):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        noise, failure = random.split(numpyro.prng_key())
        y = theta + 0.5 * random.normal(noise, theta.shape)
        y = jnp.where(random.uniform(failure, y.shape) < 0.2, jnp.nan, y)
        numpyro.sample("x", dist.Delta(y), obs=x)


def posterior(x, theta=None):
    ok = jnp.isfinite(x)
    with numpyro.plate("data", len(x)), handlers.mask(mask=ok):
        numpyro.sample("theta", dist.Normal(0.8 * jnp.where(ok, x, 0.0), 0.2**0.5))


@pytest.mark.parametrize("model", [table_model, half_a_table])
def test_a_table_is_ranked_once(model):
    report = simulation_based_calibration(KEY, {}, model, posterior, X, THETA, num_draws=19)
    assert report.ranks["theta"].shape == (100,)
    assert report.recorded
    assert report.p_value() > 0.005


def test_fresh_simulations_are_not_taken_for_a_table():
    report = simulation_based_calibration(KEY, {}, prior_model, posterior, X, num_draws=19)
    assert report.ranks["theta"].shape == (1000,)
    assert not report.recorded


def test_what_the_guide_masks_has_no_rank():
    x = jnp.zeros(2000)
    report = simulation_based_calibration(KEY, {}, failing_model, posterior, x, num_draws=19)
    assert abs(len(report.ranks["theta"]) - 1600) < 100
    assert report.p_value() > 0.005


def test_what_the_model_masks_has_no_rank():
    def wrong_where_masked(x, ok):
        with numpyro.plate("data", len(x)):
            numpyro.sample("theta", dist.Normal(0.8 * x + 9.0 * (~ok), 0.2**0.5))

    ok = jnp.arange(2000) % 4 > 0
    report = simulation_based_calibration(
        KEY, {}, prior_model, wrong_where_masked, jnp.zeros(2000), ok, num_draws=19
    )
    assert report.ranks["theta"].shape == (1500,)
    assert report.p_value() > 0.005


def test_a_mask_on_everything_is_named():
    with pytest.raises(ValueError, match="'theta' is masked in all 100 simulations"):
        simulation_based_calibration(
            KEY, {}, prior_model, posterior, X, X > 99, num_simulations=100
        )


def test_masked_data_are_in_no_mean_of_log_evidence():
    ok = jnp.array([True, False, True, False])
    x = jnp.array([0.5, 9.0, -1.0, 9.0])

    def guide(x, ok):
        with numpyro.plate("data", len(x)), handlers.mask(mask=ok):
            numpyro.sample("theta", dist.Normal(0.8 * x, 0.2**0.5))

    exact = ref.conjugate_evidence(0.5, np.array([0.5, -1.0]))
    bound = importance_weighted_bound(KEY, {}, prior_model, guide, x, ok, num_samples=20)
    ais = ais_log_likelihood(KEY, {}, prior_model, x, ok, num_chains=32, **QUICK)
    for evidence, close in ((bound, 1e-4), (ais, 0.3)):
        assert evidence.observed.tolist() == ok.tolist()
        np.testing.assert_allclose(evidence.values[ok], exact, atol=close)
        np.testing.assert_array_equal(evidence.values[~ok], 0.0)
        mean = evidence.values[ok].mean()
        assert f"{mean:.4f}" in str(evidence)
        assert "2  and 2 masked out" in str(evidence)
    assert (
        importance_weighted_bound(KEY, {}, prior_model, posterior, x, num_samples=2).observed
        is None
    )


def test_a_factor_is_evidence_of_every_datum():
    def model(x):
        with numpyro.plate("data", len(x)):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            numpyro.factor("x", dist.Normal(theta, 0.5).log_prob(x))

    assert importance_weighted_bound(KEY, {}, model, posterior, X, num_samples=2).observed is None


@pytest.mark.parametrize("masked", ["model", "guide"])
def test_masks_of_one_side_alone_are_refused(masked):
    ok = jnp.array([True, False])

    def guide(x, ok):
        with numpyro.plate("data", 2), handlers.mask(mask=ok if masked == "guide" else True):
            numpyro.sample("theta", dist.Normal(x, 1.0))

    def model(x, ok):
        prior_model(x, ok if masked == "model" else None)

    with pytest.raises(ValueError, match="'theta': model and guide mask different elements"):
        importance_weighted_bound(KEY, {}, model, guide, jnp.zeros(2), ok)


def test_too_few_temperatures_give_a_lower_bound_without_error_bar():
    evidence = ais_log_likelihood(
        KEY, {}, prior_model, jnp.array([6.0]), num_temperatures=1, num_leapfrog=1
    )
    assert evidence.is_lower_bound.all()
    assert "lower bound" in str(evidence)
    assert "±" not in str(evidence) + repr(evidence)
