# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Exact posteriors against quadrature by another rule, in other coordinates."""

import numpy as np
import pytest
from scipy import integrate, stats

from spread_analysis import reference as ref


@pytest.mark.parametrize(("scale", "x"), [(1.0, 2.0), (0.1, 2.0), (0.1, 5.0), (3.0, -1.0)])
def test_the_conjugate_case_by_quadrature(scale, x):
    z = np.linspace(-12, 12, 200_001)
    joint = stats.norm.pdf(z) * stats.norm.pdf(x, z, scale)
    evidence = integrate.simpson(joint, x=z)
    assert float(ref.conjugate_evidence(scale, x)) == pytest.approx(np.log(evidence), abs=1e-9)
    mean, sd = ref.conjugate_posterior(scale, x)
    exact_mean = integrate.simpson(z * joint, x=z) / evidence
    assert float(mean) == pytest.approx(exact_mean, abs=1e-8)
    variance = integrate.simpson((z - exact_mean) ** 2 * joint, x=z) / evidence
    assert float(sd) == pytest.approx(np.sqrt(variance), rel=1e-7)


def test_the_conjugate_case_broadcasts_and_keeps_its_digits():
    mean, sd = ref.conjugate_posterior([[1.0], [2.0]], [0.0, 1.0, 2.0])
    assert mean.shape == sd.shape == (2, 3)
    assert ref.conjugate_evidence([[1.0], [2.0]], [0.0, 1.0, 2.0]).shape == (2, 3)
    sd[0] = 5.0  # the caller's own array, no read-only view
    assert ref.conjugate_posterior(1e-12, 0.0).sd == pytest.approx(1e-12, rel=1e-12)


@pytest.mark.parametrize(
    ("scale", "log_evidence", "mean_abs"), [(0.5, -1.196005, 0.79250), (0.25, -1.365192, None)]
)
def test_the_bimodal_posterior_has_the_known_numbers(scale, log_evidence, mean_abs):
    posterior = ref.bimodal_posterior(scale)
    assert posterior.log_evidence == pytest.approx(log_evidence, abs=5e-7)
    if mean_abs is not None:
        assert posterior.mean_abs == pytest.approx(mean_abs, abs=5e-6)


@pytest.mark.parametrize(
    ("scale", "x"), [(0.5, 1.0), (0.02, 4.0), (5.0, 0.0), (0.3, -2.0), (1.0, 90)]
)
def test_the_bimodal_posterior_by_quadrature(scale, x):
    def joint(z):
        return stats.norm.pdf(z) * stats.norm.pdf(x, z**2, scale)

    def integral(f):
        points = [0.0, np.sqrt(max(x, 0.0))]
        return 2 * integrate.quad(f, 0, 25, points=points, limit=500, epsabs=0, epsrel=1e-11)[0]

    posterior = ref.bimodal_posterior(scale, x)
    evidence = integral(joint)
    assert posterior.log_evidence == pytest.approx(np.log(evidence), abs=1e-9)
    mean_abs = integral(lambda z: z * joint(z)) / evidence
    assert posterior.mean_abs == pytest.approx(mean_abs, rel=1e-6)
    assert posterior.mode_masses == pytest.approx((0.5, 0.5), abs=1e-9)
    expected = joint(posterior.grid) / evidence
    np.testing.assert_allclose(posterior.density, expected, rtol=1e-8, atol=1e-300)
    np.testing.assert_array_equal(posterior.grid, -posterior.grid[::-1])


def test_no_gaussian_is_closer_to_the_bimodal_posterior():
    posterior = ref.bimodal_posterior(0.5)
    step = posterior.grid[1] - posterior.grid[0]
    keep = np.abs(posterior.grid) < 4
    grid, log_posterior = posterior.grid[keep], np.log(posterior.density[keep])

    def kl(mean, sd):
        q = stats.norm.pdf(grid, mean, sd)
        return step * np.sum(q * (stats.norm.logpdf(grid, mean, sd) - log_posterior))

    gaps = [kl(m, sd) for m in np.linspace(-1.2, 1.2, 49) for sd in np.linspace(0.1, 0.7, 181)]
    gap = ref.bimodal_gaussian_gap(0.5)
    assert gap == pytest.approx(0.548, abs=5e-4)
    assert 0 < min(gaps) - gap < 1e-3


@pytest.mark.parametrize(("x", "straddles"), [(1.0, False), (-1.0, True)])
def test_the_best_gaussian_sits_in_one_mode_or_straddles(x, straddles):
    # With x < 0 there is one mode and a Gaussian nearly fits it.
    assert (ref.bimodal_gaussian_gap(0.25, x) < 0.1) is straddles


@pytest.mark.parametrize(
    ("prior", "scale", "mu_scale"), [("cauchy", 5.0, 5.0), ("normal", 10.0, 5.0)]
)
def test_the_eight_schools_on_a_grid_of_mu_and_tau(prior, scale, mu_scale):
    posterior = ref.eight_schools_posterior(prior, scale, mu_scale)
    mu = np.linspace(-35, 40, 301)
    u = np.linspace(-1, 1, 801)[1:-1]
    tau = 20 * u / (1 - u**2)
    d_tau = 20 * (1 + u**2) / (1 - u**2) ** 2 * (u[1] - u[0])
    log_joint = stats.norm.logpdf(mu, 0, mu_scale)[:, None] + {
        "cauchy": stats.cauchy,
        "normal": stats.norm,
    }[prior].logpdf(tau, 0, scale)
    data = zip(ref.EIGHT_SCHOOLS_EFFECTS, ref.EIGHT_SCHOOLS_ERRORS, strict=True)
    for y, sigma in data:
        log_joint += stats.norm.logpdf(y, mu[:, None], np.hypot(sigma, tau))
    mass = np.exp(log_joint) * d_tau * (mu[1] - mu[0])
    evidence = mass.sum()
    assert posterior.log_evidence == pytest.approx(np.log(evidence), abs=1e-6)
    mass /= evidence
    for values, mean, sd in (
        (mu[:, None], posterior.mu_mean, posterior.mu_sd),
        (np.abs(tau), posterior.abs_tau_mean, posterior.abs_tau_sd),
    ):
        assert mean == pytest.approx((values * mass).sum(), rel=1e-4)
        assert sd == pytest.approx(np.sqrt(((values - mean) ** 2 * mass).sum()), rel=1e-4)
    # theta_j given mu and tau is Gaussian: its moments over the grid
    shrink = tau**2 / (tau**2 + ref.EIGHT_SCHOOLS_ERRORS[0] ** 2)
    theta = shrink * ref.EIGHT_SCHOOLS_EFFECTS[0] + (1 - shrink) * mu[:, None]
    mean = (theta * mass).sum()
    assert posterior.theta_mean[0] == pytest.approx(mean, rel=1e-4)
    within = shrink * ref.EIGHT_SCHOOLS_ERRORS[0] ** 2
    variance = (((theta - mean) ** 2 + within) * mass).sum()
    assert posterior.theta_sd[0] == pytest.approx(np.sqrt(variance), rel=1e-4)
    assert posterior.positive_tau == pytest.approx(0.5, abs=1e-12)
    area = np.trapezoid(posterior.tau_density, posterior.tau_grid)
    assert area == pytest.approx(1.0, abs=1e-4)


def test_tau_of_the_eight_schools_agrees_with_their_published_posterior():
    # mu and half-Cauchy tau of posteriordb's "eight_schools-eight_schools_noncentered".
    posterior = ref.eight_schools_posterior()
    assert posterior.mu_mean == pytest.approx(4.4, abs=0.1)
    assert posterior.mu_sd == pytest.approx(3.3, abs=0.1)
    assert posterior.abs_tau_mean == pytest.approx(3.6, abs=0.1)
    assert posterior.abs_tau_sd == pytest.approx(3.2, abs=0.1)


def test_the_four_points():
    assert pytest.approx(-1.386294, abs=1e-6) == ref.FOUR_POINTS_OPTIMUM
    np.testing.assert_array_equal(ref.FOUR_POINTS.sum(0), np.ones(4))
    with pytest.raises(ValueError, match="read-only"):
        ref.FOUR_POINTS[0] = 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ref.conjugate_evidence(0.0, 1.0), "`scale` must be positive, got 0.0"),
        (lambda: ref.conjugate_posterior(1.0, np.nan), "`x` must be finite"),
        (lambda: ref.bimodal_posterior(-1.0), "`scale` must be positive, got -1.0"),
        (lambda: ref.bimodal_gaussian_gap(1.0, np.inf), "`x` must be finite"),
        (
            lambda: ref.eight_schools_posterior("uniform"),
            r"`prior` must be one of \('cauchy', 'normal'\), got 'uniform'",
        ),
        (lambda: ref.eight_schools_posterior(mu_scale=0.0), "`mu_scale` must be positive"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
