# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The hierarchical examples run in both backends; the quadrature behind them is right."""

import numpy as np
import pytest
from example_runs import run_example, summary
from scipy import stats
from studies import hierarchy_study as study


def run(backend, output, *options):
    """What the program printed, and its results by seed."""
    done = run_example("hierarchical_implicit", backend, output, *options)
    return done.stdout, summary(output)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    stdout, (found,) = run(backend, tmp_path / "out", "--smoke-test")
    assert list(found) == [f"{n}: {m}" for n in ("mu", "log tau", "theta") for m in ("mean", "sd")]
    assert f"{found['theta: mean']:.3f}" in stdout
    # A net that has hardly learned draws theta around the mean of its group, with its own width.
    assert 0.1 < found["theta: mean"] < 3
    assert 0.5 < found["theta: sd"] < 4
    assert (tmp_path / "out" / "hierarchical_implicit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_the_guide_finds_the_exact_posterior(backend, tmp_path):
    _, (found,) = run(backend, tmp_path)
    assert abs(found["mu: mean"]) < 0.5
    assert abs(found["log tau: mean"]) < 1.5
    assert found["theta: mean"] < 0.4
    for name in ("mu: sd", "log tau: sd", "theta: sd"):
        assert 0.85 < found[name] < 1.15


def test_density_of_the_noise():
    residual = np.linspace(-30, 60, 300_001)
    density = np.exp(study.log_density(residual))
    assert np.trapezoid(density, residual) == pytest.approx(1, abs=1e-4)
    z = np.random.default_rng(0).standard_normal(200_000)
    draws = study.g_and_k(z)
    assert np.trapezoid(density * residual, residual) == pytest.approx(draws.mean(), abs=0.01)
    inside = (density * (residual < 1.0)).sum() * (residual[1] - residual[0])
    assert inside == pytest.approx((draws < 1.0).mean(), abs=0.005)


def test_exact_posterior_against_importance_sampling():
    """Draws from Gaussians about the data, weighted by prior and likelihood."""
    data = study.simulate(3, 4, seed=1)
    exact = study.exact_posterior(data)
    rng, num = np.random.default_rng(0), 400_000
    near_mu, near_theta = stats.norm(data.mean(), 1.5), stats.norm(data.mean(-1), 0.4)
    mu, theta = near_mu.rvs(num, random_state=rng), near_theta.rvs((num, 3), random_state=rng)
    log_tau = stats.norm(*study.LOG_TAU_PRIOR).rvs(num, random_state=rng)
    log_weight = stats.norm(*study.MU_PRIOR).logpdf(mu) - near_mu.logpdf(mu)
    conditional = stats.norm(mu[:, None], np.exp(log_tau)[:, None])
    log_weight += (conditional.logpdf(theta) - near_theta.logpdf(theta)).sum(-1)
    log_weight += study.log_density(data - theta[..., None]).sum((1, 2))
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    error = 4 * np.sqrt((weight**2).sum())  # four standard errors, in standard deviations
    assert error < 0.07
    assert abs(weight @ mu - exact.mu[0]) < error * exact.mu[1]
    assert abs(weight @ log_tau - exact.log_tau[0]) < error * exact.log_tau[1]
    np.testing.assert_array_less(abs(weight @ theta - exact.theta_mean), error * exact.theta_sd)
    spread = np.sqrt(weight @ theta**2 - (weight @ theta) ** 2)
    np.testing.assert_allclose(spread, exact.theta_sd, rtol=error)
