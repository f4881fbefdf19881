# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What draws alone, and critics with a normaliser, say about a log density."""

import math

import numpy as np
import pytest
from scipy import stats

from spread_core.math.normaliser import log_normaliser
from spread_core.math.own_density import own_log_density
from spread_core.moments import plug_in_regret

COVARIANCE = np.array([[1.0, 0.9, 0.2], [0.9, 1.5, -0.3], [0.2, -0.3, 0.4]])
NEGATIVE_ENTROPY = -0.5 * np.linalg.slogdet(2 * math.pi * math.e * COVARIANCE)[1]


def gaussian(rng, *shape):
    return rng.standard_normal((*shape, 3)) @ np.linalg.cholesky(COVARIANCE).T


@pytest.mark.parametrize(("num_draws", "dim"), [(6, 1), (12, 3), (40, 8)])
def test_the_regret_is_what_draws_say(num_draws, dim):
    rng = np.random.default_rng(dim)
    draws = rng.standard_normal((40_000, num_draws, dim))
    centred = draws - draws.mean(1, keepdims=True)
    covariance = np.swapaxes(centred, 1, 2) @ centred / (num_draws - 1)
    away = rng.standard_normal((40_000, dim)) - draws.mean(1)
    distance = (away * np.linalg.solve(covariance, away[..., None])[..., 0]).sum(1)
    loss = (distance + np.linalg.slogdet(covariance)[1] - dim) / 2
    error = loss.std() / 200
    assert error < 0.05 * plug_in_regret(num_draws, dim)
    assert abs(loss.mean() - plug_in_regret(num_draws, dim)) < 4 * error


@pytest.mark.parametrize("num_draws", [20, 500])
def test_of_a_gaussian_it_is_the_entropy_for_every_number_of_draws(num_draws):
    rng = np.random.default_rng(0)
    values = [
        own_log_density(gaussian(rng, num_draws, 50), gaussian(rng, 4, 50), 1).mean()
        for _ in range(200)
    ]
    error = np.std(values) / math.sqrt(200)
    assert error < 0.03
    assert abs(np.mean(values) - NEGATIVE_ENTROPY) < 4 * error


@pytest.mark.parametrize("law", [stats.expon(), stats.beta(0.3, 0.3), stats.laplace()])
def test_of_other_draws_it_is_no_more_than_the_entropy(law):
    draws = law.rvs((40, 4000), random_state=1)
    values = law.rvs((10, 4000), random_state=2)
    assert own_log_density(draws, values, 0).mean() < -law.entropy()


def test_few_draws_have_no_covariance_and_a_matrix_is_a_vector():
    rng = np.random.default_rng(3)
    few, values = gaussian(rng, 11, 4000), gaussian(rng, 4000)
    independent = own_log_density(few, values, 1).mean()
    exact = -0.5 * np.log(2 * math.pi * math.e * np.diag(COVARIANCE)).sum()
    assert independent == pytest.approx(exact, abs=0.1)
    many = gaussian(rng, 100, 7)
    matrices = own_log_density(many[..., None], values[:7, :, None], 2)
    np.testing.assert_allclose(matrices, own_log_density(many, values[:7], 1))


def test_a_point_has_no_density():
    draws = np.random.default_rng(4).standard_normal((50, 3, 2))
    draws[:, 1, 0] = 0.3
    assert np.isfinite(own_log_density(draws, draws[0], 1)).tolist() == [True, False, True]


def test_the_normaliser_is_estimated_from_above():
    """Of T = a u at standard Gaussian draws it is a²/2."""
    rng = np.random.default_rng(5)
    for count in (4, 100):
        logits = 0.7 * rng.standard_normal((count, 200_000))
        found = log_normaliser(logits)
        error = found.std() / math.sqrt(200_000)
        assert found.mean() > 0.245 - 4 * error
    assert found.mean() == pytest.approx(0.245, abs=0.01)
    np.testing.assert_allclose(log_normaliser(np.full((4, 2), 800.0)), 800.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_of_fewer_dimensions_than_they_have_elements_raise_nothing(dtype):
    rng = np.random.default_rng(0)
    # Of rank one: rounding leaves a matrix that is not positive definite.
    draws = (rng.normal(size=(1100, 1)) @ rng.normal(size=(1, 256))).astype(dtype)
    torch = pytest.importorskip("torch")
    found = own_log_density(torch.tensor(draws), torch.tensor(draws[:3]), 1)
    assert torch.isfinite(found).all()
    draws[7, 3] = np.nan
    assert torch.isnan(own_log_density(torch.tensor(draws), torch.tensor(draws[:3]), 1)).all()
