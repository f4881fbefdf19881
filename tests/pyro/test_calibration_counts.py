# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation counts what there is: no repeats of a table, nothing that a mask leaves out."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_spread import (
    ais_log_likelihood,
    importance_weighted_bound,
    simulation_based_calibration,
)
from spread_analysis import reference as ref

RNG = np.random.default_rng(0)
THETA = torch.as_tensor(RNG.standard_normal(100)).float()
X = THETA + 0.5 * torch.as_tensor(RNG.standard_normal(100)).float()
QUICK = {"num_temperatures": 40, "num_leapfrog": 4}


@pytest.fixture(autouse=True)
def _seed():
    pyro.set_rng_seed(0)


def table_model(x, theta):
    with pyro.plate("data", len(x)):
        pyro.sample("theta", dist.Delta(theta))
        pyro.sample("x", dist.Delta(x), obs=x)


def half_a_table(x, theta):
    with pyro.plate("data", len(x)):
        pyro.sample("theta", dist.Delta(theta))
        pyro.sample("x", dist.Normal(theta, 0.5), obs=x)


def prior_model(x, ok=None):
    with pyro.plate("data", len(x)), poutine.mask(mask=True if ok is None else ok):
        theta = pyro.sample("theta", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(theta, 0.5), obs=x)


def failing_model(x):
    with pyro.plate("data", len(x)):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        y = theta + 0.5 * torch.randn(theta.shape)
        y = torch.where(torch.rand(y.shape) < 0.2, torch.nan, y)
        pyro.sample("x", dist.Delta(y), obs=x)


def posterior(x, theta=None):
    ok = torch.isfinite(x)
    with pyro.plate("data", len(x)), poutine.mask(mask=ok):
        pyro.sample("theta", dist.Normal(0.8 * torch.where(ok, x, 0.0), 0.2**0.5))


@pytest.mark.parametrize("model", [table_model, half_a_table])
def test_a_table_is_ranked_once(model):
    report = simulation_based_calibration(model, posterior, X, THETA, num_draws=19)
    assert report.ranks["theta"].shape == (100,)
    assert report.recorded
    assert report.p_value() > 0.005


def test_fresh_simulations_are_not_taken_for_a_table():
    report = simulation_based_calibration(prior_model, posterior, X, num_draws=19)
    assert report.ranks["theta"].shape == (1000,)
    assert not report.recorded


def test_what_the_guide_masks_has_no_rank():
    x = torch.zeros(2000)
    report = simulation_based_calibration(failing_model, posterior, x, num_draws=19)
    assert abs(len(report.ranks["theta"]) - 1600) < 100
    assert report.p_value() > 0.005


def test_what_the_model_masks_has_no_rank():
    def wrong_where_masked(x, ok):
        with pyro.plate("data", len(x)):
            pyro.sample("theta", dist.Normal(0.8 * x + 9.0 * (~ok), 0.2**0.5))

    ok = torch.arange(2000) % 4 > 0
    report = simulation_based_calibration(
        prior_model, wrong_where_masked, torch.zeros(2000), ok, num_draws=19
    )
    assert report.ranks["theta"].shape == (1500,)
    assert report.p_value() > 0.005


def test_a_mask_on_everything_is_named():
    with pytest.raises(ValueError, match="'theta' is masked in all 100 simulations"):
        simulation_based_calibration(prior_model, posterior, X, X > 99, num_simulations=100)


def test_masked_data_are_in_no_mean_of_log_evidence():
    ok = torch.tensor([True, False, True, False])
    x = torch.tensor([0.5, 9.0, -1.0, 9.0])

    def guide(x, ok):
        with pyro.plate("data", len(x)), poutine.mask(mask=ok):
            pyro.sample("theta", dist.Normal(0.8 * x, 0.2**0.5))

    exact = ref.conjugate_evidence(0.5, np.array([0.5, -1.0]))
    bound = importance_weighted_bound(prior_model, guide, x, ok, num_samples=20)
    ais = ais_log_likelihood(prior_model, x, ok, num_chains=32, **QUICK)
    for evidence, close in ((bound, 1e-4), (ais, 0.3)):
        assert evidence.observed.tolist() == ok.tolist()
        np.testing.assert_allclose(evidence.values[ok.numpy()], exact, atol=close)
        np.testing.assert_array_equal(evidence.values[~ok.numpy()], 0.0)
        mean = evidence.values[ok.numpy()].mean()
        assert f"{mean:.4f}" in str(evidence)
        assert "2  and 2 masked out" in str(evidence)
    assert importance_weighted_bound(prior_model, posterior, x, num_samples=2).observed is None


def test_a_factor_is_evidence_of_every_datum():
    def model(x):
        with pyro.plate("data", len(x)):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.factor("x", dist.Normal(theta, 0.5).log_prob(x))

    assert importance_weighted_bound(model, posterior, X, num_samples=2).observed is None


@pytest.mark.parametrize("masked", ["model", "guide"])
def test_masks_of_one_side_alone_are_refused(masked):
    ok = torch.tensor([True, False])

    def guide(x, ok):
        with pyro.plate("data", 2), poutine.mask(mask=ok if masked == "guide" else True):
            pyro.sample("theta", dist.Normal(x, 1.0))

    def model(x, ok):
        prior_model(x, ok if masked == "model" else None)

    with pytest.raises(ValueError, match="'theta': model and guide mask different elements"):
        importance_weighted_bound(model, guide, torch.zeros(2), ok)


def test_too_few_temperatures_give_a_lower_bound_without_error_bar():
    evidence = ais_log_likelihood(
        prior_model, torch.tensor([6.0]), num_temperatures=1, num_leapfrog=1
    )
    assert evidence.is_lower_bound.all()
    assert "lower bound" in str(evidence)
    assert "±" not in str(evidence) + repr(evidence)
