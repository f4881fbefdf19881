# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Two deltas after noise: the numbers of the table, quadrature, Monte Carlo, invariants."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from spread_analysis import reference as ref

NOISES = ("gaussian", "laplace", "cauchy", "logistic")
SCIPY = {
    "gaussian": stats.norm,
    "laplace": stats.laplace,
    "cauchy": stats.cauchy,
    "logistic": stats.logistic,
}
DIVERGENCES = {
    "kl": ref.two_deltas_kl,
    "total_variation": ref.two_deltas_total_variation,
    "bhattacharyya": ref.two_deltas_bhattacharyya,
    "chi_squared": ref.two_deltas_chi_squared,
}
INTEGRANDS = {
    "kl": lambda p, q, r: p * r,
    "total_variation": lambda p, q, r: 0.5 * abs(p - q),
    "bhattacharyya": lambda p, q, r: np.sqrt(p * q),
    "chi_squared": lambda p, q, r: (p - q) * np.expm1(r),
}


def quadrature(name, noise, distance, scale):
    """Integrate by SciPy's own densities, independent of the package's."""
    p, q = SCIPY[noise](0, scale), SCIPY[noise](distance, scale)

    def integrand(x):
        return INTEGRANDS[name](p.pdf(x), q.pdf(x), p.logpdf(x) - q.logpdf(x))

    wide = 40 * scale if noise in ("laplace", "logistic") else 12 * scale
    breaks = [-wide, -scale, 0, distance / 2, distance, distance + scale, distance + wide]
    if noise == "cauchy":
        breaks = [-np.inf, *breaks, np.inf]
    return sum(
        integrate.quad(integrand, low, high, epsabs=1e-13, epsrel=1e-11, limit=200)[0]
        for low, high in itertools.pairwise(breaks)
    )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize(("distance", "scale"), [(0.3, 0.5), (1.0, 1.0), (2.5, 0.8)])
def test_closed_form_is_the_integral(name, noise, distance, scale):
    expected = quadrature(name, noise, distance, scale)
    actual = DIVERGENCES[name](distance, scale, noise)
    np.testing.assert_allclose(actual, expected, rtol=2e-9, atol=1e-11)


def test_table_of_closed_forms():
    d = np.array([0.5, 1.0, 2.0, 4.0])
    np.testing.assert_allclose(ref.two_deltas_kl(d, 1.0), [0.125, 0.5, 2.0, 8.0])
    np.testing.assert_allclose(
        ref.two_deltas_kl(d, 1.0, "laplace"),
        [0.1065306597, 0.3678794412, 1.1353352832, 3.0183156389],
        rtol=1e-9,
    )
    np.testing.assert_allclose(ref.two_deltas_kl(2.0, 1.0, "cauchy"), np.log(2.0), rtol=1e-14)
    np.testing.assert_allclose(ref.two_deltas_total_variation(2.0, 1.0, "cauchy"), 0.5, rtol=1e-14)
    np.testing.assert_allclose(
        ref.two_deltas_total_variation(2.0, 1.0), 2 * stats.norm.cdf(1.0) - 1, rtol=1e-14
    )
    np.testing.assert_allclose(
        ref.two_deltas_total_variation(2.0, 1.0, "laplace"), 0.6321205588, rtol=1e-9
    )
    np.testing.assert_allclose(ref.two_deltas_bhattacharyya(2.0, 1.0), np.exp(-0.5), rtol=1e-14)
    np.testing.assert_allclose(
        ref.two_deltas_bhattacharyya(2.0, 1.0, "laplace"), 2 * np.exp(-1.0), rtol=1e-14
    )
    np.testing.assert_allclose(ref.two_deltas_chi_squared(1.0, 1.0), np.e - 1, rtol=1e-14)
    np.testing.assert_allclose(
        ref.two_deltas_chi_squared(1.0, 1.0, "laplace"),
        2 / 3 * np.e + np.exp(-2) / 3 - 1,
        rtol=1e-14,
    )


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        ("gaussian", [0.0303113, 0.1114215, 0.3368308, 0.6327202]),
        ("laplace", [0.0263670, 0.0885196, 0.2477204, 0.4988231]),
    ],
)
def test_table_of_jensen_shannon(noise, expected):
    actual = ref.two_deltas_js([0.5, 1.0, 2.0, 4.0], 1.0, noise)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5.1e-8)


@pytest.mark.parametrize("noise", NOISES)
def test_jensen_shannon_limits(noise):
    # Equal, disjoint, symmetric under pi -> 1 - pi, and KL as pi -> 0 at the rate pi / 2 chi^2.
    assert abs(ref.two_deltas_js(0.0, 1.0, noise)) < 1e-12
    entropy = -0.3 * np.log(0.3) - 0.7 * np.log(0.7)
    far = ref.two_deltas_js(1e7, 1.0, noise, pi=0.3)
    np.testing.assert_allclose(far, entropy, rtol=0, atol=1e-5)
    one, other = (ref.two_deltas_js(1.5, 1.0, noise, pi=pi) for pi in (0.2, 0.8))
    np.testing.assert_allclose(one, other, rtol=1e-9)
    pi = 1e-5
    ratio = ref.two_deltas_js(1.0, 1.0, noise, pi=pi) / (pi * (1 - pi))
    kl = ref.two_deltas_kl(1.0, 1.0, noise)
    slack = pi * ref.two_deltas_chi_squared(1.0, 1.0, noise)
    assert 0 <= kl - ratio <= slack


def test_jensen_shannon_of_gaussians_of_another_pi():
    # N(0, 1) against N(2, 1), both weights.
    actual = [ref.two_deltas_js(2.0, 1.0, pi=pi) for pi in (0.1, 0.5, 0.9)]
    np.testing.assert_allclose(
        actual, [0.1420204064, 0.3368308203, 0.1420204064], rtol=0, atol=6e-11
    )


@pytest.mark.parametrize("noise", NOISES)
def test_log_ratio_moments_by_monte_carlo(noise):
    mean, variance = ref.two_deltas_log_ratio_moments(1.5, 0.7, noise)
    np.testing.assert_allclose(mean, ref.two_deltas_kl(1.5, 0.7, noise))
    law, num = SCIPY[noise], 200_000
    y = law(0, 0.7).rvs(num, random_state=1)
    draws = law(0, 0.7).logpdf(y) - law(1.5, 0.7).logpdf(y)
    # Four standard errors of the mean, and of the variance from the sample's fourth moment.
    assert abs(draws.mean() - mean) < 4 * np.sqrt(variance / num)
    squares = np.square(draws - mean)
    assert abs(squares.mean() - variance) < 4 * squares.std() / np.sqrt(num)


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3, 0.99, 1.01, 30.0])
def test_laplace_log_ratio_variance_is_the_quadrature(distance):
    def integrand(x):
        return 0.5 * np.exp(-abs(x)) * (abs(x - distance) - abs(x)) ** 2

    breaks = [-40.0, 0.0, distance, distance + 40.0]
    second = sum(
        integrate.quad(integrand, low, high, epsabs=1e-14)[0]
        for low, high in itertools.pairwise(breaks)
    )
    mean, variance = ref.two_deltas_log_ratio_moments(distance, 1.0, "laplace")
    np.testing.assert_allclose(variance, second - mean**2, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("noise", ["laplace", "logistic"])
def test_kl_keeps_its_digits_at_small_distances(noise):
    # Half the Fisher information of location times r^2: 1 for Laplace, 1/3 for logistic.
    information = {"laplace": 1.0, "logistic": 1 / 3}[noise]
    r = np.array([1e-9, 1e-6, 1e-4])
    # The Laplace density has a kink, so its next term is cubic.
    tolerance = {"laplace": r, "logistic": r**2 + 1e-14}[noise]
    error = np.abs(ref.two_deltas_kl(r, 1.0, noise) / (information * r**2 / 2) - 1)
    assert (error <= tolerance).all()


@pytest.mark.parametrize("noise", ["laplace", "logistic"])
def test_kl_branches_meet(noise):
    edge = {"laplace": 1.0, "logistic": 0.1}[noise]
    below, above = ref.two_deltas_kl([edge * (1 - 1e-12), edge], 1.0, noise)
    np.testing.assert_allclose(below, above, rtol=1e-11)


def test_student_t_kl_between_cauchy_and_gaussian():
    r = np.array([0.5, 2.0, 8.0])
    cauchy = ref.two_deltas_kl(r, 2.0, "cauchy")
    np.testing.assert_allclose(ref.student_t_deltas_kl(r, 1.0, 2.0), cauchy, rtol=1e-9)
    # The gap to the Gaussian closes as 1 / df.
    gaps = [
        float(ref.two_deltas_kl(1.0, 1.0) - ref.student_t_deltas_kl(1.0, df)) for df in (1e3, 2e3)
    ]
    assert 0 < gaps[0] < 2 / 1e3
    np.testing.assert_allclose(gaps[0] / gaps[1], 2.0, rtol=0.01)


def test_rounding_does_not_carry_the_coefficient_over_one():
    assert ref.two_deltas_bhattacharyya(0.015625, 280244.0, "cauchy") == 1.0


@settings(deadline=None)
@given(
    noise=st.sampled_from(NOISES),
    distance=st.floats(1e-6, 1e6),
    scale=st.floats(1e-6, 1e6),
)
def test_inequalities_between_divergences(noise, distance, scale):
    kl, tv, bc, chi2 = (f(distance, scale, noise) for f in DIVERGENCES.values())
    slack = 1e-12
    assert 0 <= tv <= 1
    assert 0 <= bc <= 1
    assert tv**2 / 2 <= kl / 4 + slack  # Pinsker: TV <= sqrt(KL / 2)
    assert 1 - bc <= tv + slack
    assert tv <= np.sqrt(1 - bc**2) + 1e-7
    assert kl <= np.log1p(chi2) + slack * max(1.0, float(kl))


@settings(deadline=None)
@given(noise=st.sampled_from(NOISES), ratio=st.floats(0, 1e3), scale=st.floats(1e-3, 1e3))
def test_only_the_ratio_counts_and_the_sign_does_not(noise, ratio, scale):
    for divergence in DIVERGENCES.values():
        unit = divergence(ratio, 1.0, noise)
        # The absolute part is for squares that underflow.
        mirrored = divergence(-ratio * scale, scale, noise)
        np.testing.assert_allclose(mirrored, unit, rtol=1e-9, atol=1e-300)


def test_broadcasting_and_huge_distances():
    grid = ref.two_deltas_kl(np.ones((3, 1)), np.ones(4), "laplace")
    assert grid.shape == (3, 4)
    assert ref.two_deltas_js(np.ones((2, 3)), 1.0).shape == (2, 3)
    assert ref.two_deltas_chi_squared(1e3, 1.0) == np.inf
    assert ref.two_deltas_bhattacharyya(1e5, 1.0, "logistic") == 0.0
    np.testing.assert_allclose(ref.two_deltas_kl(1e5, 1.0, "logistic"), 1e5 - 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.0), "`scale` must be positive, got 0.0"),
        ((1.0, -1.0), "`scale` must be positive, got -1.0"),
        ((1.0, np.nan), "`scale` must be positive, got nan"),
        ((np.inf, 1.0), "`distance` must be finite"),
        ((1.0, 1.0, "uniform"), r"`noise` must be one of \['cauchy', 'gaussian'"),
    ],
)
@pytest.mark.parametrize("function", [*DIVERGENCES.values(), ref.two_deltas_js])
def test_errors_name_the_argument(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@pytest.mark.parametrize("pi", [0.0, 1.0, -0.1, np.nan])
def test_pi_out_of_range(pi):
    with pytest.raises(ValueError, match="`pi` must lie strictly between 0 and 1"):
        ref.two_deltas_js(1.0, 1.0, pi=pi)
