# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One-atom models, Tweedie's formula, and the matching of mixing matrices."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

import spread_analysis as sa
from spread_analysis import reference as ref


def test_laplace_point_is_the_median_of_the_convolution():
    data, scale = np.array([0.0, 0.2, 5.0]), 0.5
    location = ref.point_model_optimum(data, scale, "laplace")
    np.testing.assert_allclose(location, 0.456451, atol=5e-7)
    assert abs(location - np.median(data)) > 0.2
    cdf = stats.laplace(data, scale).cdf(location).mean()
    np.testing.assert_allclose(cdf, 0.5, atol=1e-14)


def test_gaussian_point_is_the_mean():
    np.testing.assert_allclose(ref.point_model_optimum([0.0, 0.2, 5.0], 0.5), 5.2 / 3, rtol=1e-15)
    weighted = ref.point_model_optimum([0.0, 1.0], 0.5, weights=[0.25, 0.75])
    assert weighted == 0.75


@pytest.mark.parametrize("noise", ["gaussian", "laplace", "logistic"])
@pytest.mark.parametrize("scale", [0.1, 0.5, 20.0])
def test_point_minimises_the_summed_kl(noise, scale):
    data, weights = np.array([-1.0, 0.3, 0.4, 6.0]), np.array([0.1, 0.4, 0.2, 0.3])

    def objective(location):
        return weights @ ref.two_deltas_kl(data - location, scale, noise)

    found = optimize.minimize_scalar(
        objective, bounds=(-1, 6), method="bounded", options={"xatol": 1e-9}
    )
    location = ref.point_model_optimum(data, scale, noise, weights)
    # A minimum is located to the square root of the precision of its value.
    assert abs(location - found.x) < 1e-5
    assert objective(location) <= found.fun * (1 + 1e-13)


def test_logistic_point_next_to_a_heavy_datum():
    # The slope at small distances is a series; the balance with a far datum tests it.
    weights = np.array([0.995, 0.005])
    location = ref.point_model_optimum([0.0, 1.0], 1.0, "logistic", weights)
    assert 0 < location < 0.01
    pull = 1 / np.tanh((1 - location) / 2) - (1 - location) / 2 / np.sinh((1 - location) / 2) ** 2
    # Slope r / 3 - r^3 / 90 near zero, whose inverse is 3 f + 0.9 f^3.
    force = weights[1] / weights[0] * pull
    np.testing.assert_allclose(location, 3 * force + 0.9 * force**3, rtol=1e-8)


@settings(deadline=None)
@given(
    data=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8),
    scale=st.floats(1e-2, 1e3),
    noise=st.sampled_from(["gaussian", "laplace", "logistic"]),
)
@example(data=[0.0, 0.0, 1.5578956802764146e-179], scale=1.0, noise="laplace")
def test_point_lies_inside_the_data_and_moves_with_them(data, scale, noise):
    location = ref.point_model_optimum(data, scale, noise)
    slack = 1e-9 * (1 + max(map(abs, data)))
    assert min(data) - slack <= location <= max(data) + slack
    mirrored = ref.point_model_optimum([-value for value in data], scale, noise)
    # With an even number of far-apart Laplace data the objective is flat to rounding in the middle.
    total = sum(float(ref.two_deltas_kl(v - location, scale, noise)) for v in data)
    reflected = sum(float(ref.two_deltas_kl(v + mirrored, scale, noise)) for v in data)
    np.testing.assert_allclose(total, reflected, rtol=1e-7, atol=1e-12)


def test_frozen_noise_is_less_efficient_by_simulation():
    num, repeats, scale = 50, 20_000, 5.0
    rng = np.random.default_rng(0)
    data = rng.laplace(size=(repeats, num))
    fresh, frozen = ref.gaussian_location_variance(2.0, scale)
    assert (fresh, frozen) == (2.0, 27.0)
    means = {
        "fresh": data.mean(1),
        "frozen": (data + scale * rng.standard_normal(data.shape)).mean(1),
    }
    for name, expected in (("fresh", fresh), ("frozen", frozen)):
        # The variance of a variance of nearly normal means is 2 sigma^4 / repeats.
        error = num * means[name].var() / expected - 1
        assert abs(error) < 4 * np.sqrt(2.2 / repeats)


def test_tweedie_of_two_points():
    y, a, s = np.linspace(-3, 3, 25), 1.3, 0.8
    mean, variance = ref.two_point_posterior(y, a, s)
    np.testing.assert_allclose(mean, a * np.tanh(a * y / s**2), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(variance, a**2 / np.cosh(a * y / s**2) ** 2, rtol=1e-12)
    general = ref.tweedie_posterior(y[:, None], [[-a], [a]], s)
    np.testing.assert_allclose(general.mean[:, 0], mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(general.variance[:, 0], variance, rtol=1e-9)
    # Var = s^2 dE/dy, the second half of Tweedie's formula.
    step = 1e-5
    slope = (
        ref.two_point_posterior(y + step, a, s).mean - ref.two_point_posterior(y - step, a, s).mean
    )
    np.testing.assert_allclose(s**2 * slope / (2 * step), variance, rtol=1e-6, atol=1e-9)


def test_tweedie_is_the_datum_plus_the_score():
    rng = np.random.default_rng(1)
    atoms, weights, scale = rng.standard_normal((6, 2)), rng.dirichlet(np.ones(6)), 0.7
    y, step = rng.standard_normal((4, 2)), 1e-5

    def log_density(point):
        parts = np.exp(-0.5 * np.square((point - atoms) / scale).sum(1))
        return np.log(weights @ parts)

    score = np.array(
        [
            [(log_density(p + e) - log_density(p - e)) / (2 * step) for e in step * np.eye(2)]
            for p in y
        ]
    )
    mean, variance = ref.tweedie_posterior(y, atoms, scale, weights)
    np.testing.assert_allclose(mean, y + scale**2 * score, rtol=1e-7, atol=1e-9)
    assert mean.shape == variance.shape == (4, 2)


def test_tweedie_far_away_does_not_overflow():
    mean, variance = ref.two_point_posterior([1e6, -1e6], 2.0, 1e-3)
    np.testing.assert_array_equal(mean, [2.0, -2.0])
    np.testing.assert_array_equal(variance, [0.0, 0.0])
    assert ref.tweedie_posterior([1e8], [[-1.0], [1.0]], 1e-3).mean == 1.0


@settings(deadline=None)
@given(dim=st.integers(1, 8), num=st.integers(1, 6), seed=st.integers(0, 1000))
def test_matching_undoes_any_signed_permutation(dim, num, seed):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-1, 1, (dim, num))
    signs, order = rng.choice([-1.0, 1.0], num), rng.permutation(num)
    shuffled = (truth * signs)[:, order]
    np.testing.assert_array_equal(sa.match_columns(shuffled, truth), truth)
    assert sa.mean_relative_error(shuffled, truth) == 0.0
    np.testing.assert_allclose(sa.mean_relative_error(1.1 * shuffled, truth), 0.1, rtol=1e-9)
    np.testing.assert_allclose(
        sa.mean_relative_error(1.1 * shuffled, truth, "norm"), 0.1, rtol=1e-9
    )


def test_matching_is_optimal_where_greedy_is_not():
    # Column 0 of the estimate is closest to both columns of the truth.
    truth = np.array([[1.0, 1.2]])
    estimate = np.array([[1.15, 3.0]])
    np.testing.assert_array_equal(sa.match_columns(estimate, truth), [[1.15, 3.0]])


def test_relative_error_by_hand():
    truth, estimate = [[1.0, -2.0]], [[1.5, 2.2]]
    np.testing.assert_allclose(sa.mean_relative_error(estimate, truth), (0.5 + 0.1) / 2)
    np.testing.assert_allclose(
        sa.mean_relative_error(estimate, truth, "norm"), np.hypot(0.5, 0.2) / np.sqrt(5)
    )


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"`noise` must be one of .*got 'cauchy'"):
        ref.point_model_optimum([0.0], 1.0, "cauchy")
    with pytest.raises(ValueError, match=r"`data` must have shape \(num_data,\), got \(0,\)"):
        ref.point_model_optimum([], 1.0)
    with pytest.raises(ValueError, match="`scale` must be positive, got -1"):
        ref.two_point_posterior(0.0, 1.0, -1.0)
    with pytest.raises(ValueError, match=r"`y` must have shape \(..., 2\), got \(1,\)"):
        ref.tweedie_posterior([0.0], [[0.0, 1.0]], 1.0)
    with pytest.raises(ValueError, match="`data_variance` must be positive"):
        ref.gaussian_location_variance(0.0, 1.0)
    with pytest.raises(ValueError, match=r"same shape, got \(1, 2\) and \(2, 1\)"):
        sa.match_columns([[1.0, 2.0]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="`truth` has zero entries; use aggregate='norm'"):
        sa.mean_relative_error([[1.0, 2.0]], [[0.0, 2.0]])
    with pytest.raises(ValueError, match="`truth` must not be the zero matrix"):
        sa.mean_relative_error([[1.0, 2.0]], [[0.0, 0.0]], "norm")
    with pytest.raises(ValueError, match="`aggregate` must be 'elements' or 'norm', got 'max'"):
        sa.mean_relative_error([[1.0]], [[1.0]], "max")
