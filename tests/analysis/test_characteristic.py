# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Characteristic functions: quadrature against SciPy's densities, exact cases, extremes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

import spread_analysis as sa

FUNCTIONS = {
    "gaussian": (sa.gaussian_characteristic_function, stats.norm),
    "laplace": (sa.laplace_characteristic_function, stats.laplace),
    "cauchy": (sa.cauchy_characteristic_function, stats.cauchy),
    "logistic": (sa.logistic_characteristic_function, stats.logistic),
    "student_t_3": (lambda w, s: sa.student_t_characteristic_function(w, 3.0, s), stats.t(3)),
    "student_t_4.5": (lambda w, s: sa.student_t_characteristic_function(w, 4.5, s), stats.t(4.5)),
    "student_t_90": (lambda w, s: sa.student_t_characteristic_function(w, 90.0, s), stats.t(90)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("omega", [0.3, 1.0, 2.5])
def test_is_the_fourier_integral(name, omega):
    function, law = FUNCTIONS[name]
    scale = 0.7
    # QUADPACK's Fourier rule; it integrates the density's slow tails to infinity.
    half, _ = integrate.quad(
        lambda x: law.pdf(x / scale) / scale, 0, np.inf, weight="cos", wvar=omega, limlst=500
    )
    np.testing.assert_allclose(function(omega, scale), 2 * half, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_at_zero_even_and_positive(name):
    function, _ = FUNCTIONS[name]
    omega = np.geomspace(1e-300, 20.0, 300)
    values = function(omega, 1.0)
    assert function(0.0, 1.0) == 1.0
    np.testing.assert_array_equal(values, function(-omega, 1.0))
    # No zeros is what makes the kernel valid, and these all decrease from one.
    assert (values > 0).all()
    assert (np.diff(values) <= 1e-14).all()


def test_student_t_exact_cases():
    omega, scale = np.linspace(0, 12, 49), 0.8
    u = omega * scale
    exact = {
        1.0: np.exp(-u),
        3.0: (1 + np.sqrt(3) * u) * np.exp(-np.sqrt(3) * u),
        5.0: (1 + np.sqrt(5) * u + 5 * u**2 / 3) * np.exp(-np.sqrt(5) * u),
        np.inf: np.exp(-(u**2) / 2),
    }
    for df, expected in exact.items():
        actual = sa.student_t_characteristic_function(omega, df, scale)
        np.testing.assert_allclose(actual, expected, rtol=2e-13)


@pytest.mark.parametrize(
    ("omega", "df", "expected"),
    # 40-digit arithmetic; both sides of the switch between the Bessel function and its expansion.
    [
        (1e-6, 79.0, 0.99999999999948701),
        (1e-3, 79.0, 0.9999994870131225),
        (10.0, 100.0, 2.70842560365904319e-17),
        (10.0, 200.0, 4.3006396179449671e-19),
        (30.0, 1000.0, 3.39882707674963188e-151),
    ],
)
def test_student_t_against_high_precision(omega, df, expected):
    actual = sa.student_t_characteristic_function(omega, df)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_student_t_is_smooth_across_the_switch_of_method():
    omega = np.array([1e-4, 0.1, 1.0, 5.0, 20.0])
    below, above = (
        sa.student_t_characteristic_function(omega, 80.0 * (1 + e)) for e in (-1e-12, 1e-12)
    )
    np.testing.assert_allclose(below, above, rtol=1e-9)


def test_student_t_approaches_the_gaussian():
    # phi_t / phi_normal = 1 - (u^2 - u^4/4) / df + O(1 / df^2)
    u, df = 1.5, 1e8
    ratio = sa.student_t_characteristic_function(u, df) / np.exp(-(u**2) / 2)
    np.testing.assert_allclose((1 - ratio) * df, u**2 - u**4 / 4, rtol=1e-5)


@settings(deadline=None)
@given(
    omega=st.floats(-1e200, 1e200),
    df=st.floats(1e-2, 1e12),
    scale=st.floats(1e-6, 1e6),
)
def test_student_t_stays_in_the_unit_interval(omega, df, scale):
    with np.errstate(all="raise", under="ignore"):
        value = float(sa.student_t_characteristic_function(omega, df, scale))
    assert 0.0 <= value <= 1.0


def test_large_and_tiny_arguments():
    assert sa.logistic_characteristic_function(1e6, 1.0) == 0.0
    assert sa.logistic_characteristic_function(1e-320, 1.0) == 1.0
    np.testing.assert_allclose(
        sa.logistic_characteristic_function(230.0, 1.0),
        2 * np.pi * 230 * np.exp(-np.pi * 230),
        rtol=1e-12,
    )
    assert sa.student_t_characteristic_function(1e300, 3.0) == 0.0
    assert sa.student_t_characteristic_function(1e-300, 1e5) == 1.0


def test_broadcasting_over_all_arguments():
    actual = sa.student_t_characteristic_function(
        np.ones((3, 1, 1)), np.array([[1.0], [4.0]]), np.array([0.5, 1.0, 2.0, 3.0])
    )
    assert actual.shape == (3, 2, 4)
    single = sa.student_t_characteristic_function(1.0, 4.0, 2.0)
    assert single.shape == ()
    assert actual[1, 1, 2] == single


def test_monte_carlo():
    # Var cos(w x) = (1 + phi(2w)) / 2 - phi(w)^2 is known in closed form.
    num, df, omega = 400_000, 2.5, 0.9
    draws = np.cos(omega * stats.t(df).rvs(num, random_state=0))
    phi, double = (sa.student_t_characteristic_function(w, df) for w in (omega, 2 * omega))
    assert abs(draws.mean() - phi) < 4 * np.sqrt(((1 + double) / 2 - phi**2) / num)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_name_the_argument(name):
    function, _ = FUNCTIONS[name]
    with pytest.raises(ValueError, match="`scale` must be positive, got 0"):
        function(1.0, 0.0)
    with pytest.raises(ValueError, match="`omega` must be finite"):
        function(np.nan, 1.0)


def test_degrees_of_freedom_must_be_positive():
    for df in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="`df` must be positive"):
            sa.student_t_characteristic_function(1.0, df)
