# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Gaussians and atoms under Gaussian noise: known numbers, quadrature, de Bruijn, MMD identity."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from spread_analysis import reference as ref


def random_covariance(rng, dim, rank=None):
    factor = rng.standard_normal((dim, dim if rank is None else rank))
    return factor @ factor.T


def test_supports_of_different_dimension():
    point, line, other = np.zeros((2, 2)), np.diag([1.0, 0.0]), np.diag([0.0, 1.0])
    np.testing.assert_allclose(ref.spread_gaussian_kl(point, line, 0.5), 0.4047190, atol=5e-8)
    np.testing.assert_allclose(ref.spread_gaussian_kl(line, point, 0.5), 1.1952810, atol=5e-8)
    np.testing.assert_allclose(ref.spread_gaussian_kl(line, other, 0.5), 1.6, rtol=1e-13)


@pytest.mark.parametrize(("apart", "scale"), [(0.3, 0.5), (2.0, 0.1)])
def test_parallel_lines(apart, scale):
    line = np.diag([1.0, 0.0])
    actual = ref.spread_gaussian_kl(line, line, scale, mean_q=[0.0, apart])
    np.testing.assert_allclose(actual, apart**2 / (2 * scale**2), rtol=1e-13)


@pytest.mark.parametrize(
    ("mean", "std", "forward", "backward"),
    [
        (1.0, 2.0, 0.4431471806, 1.3068528194),
        (0.0, 1.5, 0.12768733, 0.21953489),
        (2.0, 1.0, 2.0, 2.0),
    ],
)
def test_kl_of_normals(mean, std, forward, backward):
    p, q = ([0.0], [[1.0]]), ([mean], [[std**2]])
    np.testing.assert_allclose(ref.gaussian_kl(*p, *q), forward, atol=5e-9)
    np.testing.assert_allclose(ref.gaussian_kl(*q, *p), backward, atol=5e-9)


def test_kl_and_fisher_divergence_by_monte_carlo():
    rng, num, dim = np.random.default_rng(0), 200_000, 3
    mean_p, mean_q = rng.standard_normal((2, dim))
    cov_p, cov_q = (
        random_covariance(rng, dim) + np.eye(dim),
        random_covariance(rng, dim) + np.eye(dim),
    )
    p, q = stats.multivariate_normal(mean_p, cov_p), stats.multivariate_normal(mean_q, cov_q)
    y = p.rvs(num, random_state=1)
    ratio = p.logpdf(y) - q.logpdf(y)
    kl = ref.gaussian_kl(mean_p, cov_p, mean_q, cov_q)
    # Variance of the log-ratio: of a quadratic form, 1/2 |I - R' S_q^-1 R|^2 + shift' S_p shift.
    precision = np.linalg.inv(cov_q)
    root = np.linalg.cholesky(cov_p)
    shift = precision @ (mean_p - mean_q)
    variance = (
        0.5 * np.square(np.eye(dim) - root.T @ precision @ root).sum() + shift @ cov_p @ shift
    )
    assert abs(ratio.mean() - kl) < 4 * np.sqrt(variance / num)

    score = -(y - mean_p) @ np.linalg.inv(cov_p) + (y - mean_q) @ precision
    squares = np.square(score).sum(1)
    fisher = ref.gaussian_fisher_divergence(mean_p, cov_p, mean_q, cov_q)
    assert abs(squares.mean() - fisher) < 4 * squares.std() / np.sqrt(num)


def test_kl_survives_extreme_scales():
    np.testing.assert_allclose(ref.gaussian_kl(None, np.eye(3) * 1e-20, None, np.eye(3) * 1e-20), 0)
    big = ref.spread_gaussian_kl(np.zeros((50, 50)), np.eye(50) * 1e-8, 1e-8)
    ratio = 1.0 / (1.0 + 1e-8 / 1e-16)
    np.testing.assert_allclose(big, 25 * (ratio - 1 - np.log(ratio)), rtol=1e-7)


def test_de_bruijn_in_closed_form():
    rng, dim = np.random.default_rng(1), 4
    cov_p, cov_q = random_covariance(rng, dim, 2), random_covariance(rng, dim, 3)
    mean_q = rng.standard_normal(dim)
    for variance in (0.05, 0.5, 4.0):
        step = 1e-4 * variance

        def kl(v):
            return ref.spread_gaussian_kl(cov_p, cov_q, np.sqrt(v), mean_q=mean_q)

        # Five-point rule: its error is of order step^4, far below the tolerance.
        numeric = (
            8 * (kl(variance + step) - kl(variance - step))
            - (kl(variance + 2 * step) - kl(variance - 2 * step))
        ) / (12 * step)
        exact = ref.spread_gaussian_kl_derivative(cov_p, cov_q, np.sqrt(variance), mean_q=mean_q)
        assert exact < 0
        np.testing.assert_allclose(numeric, exact, rtol=1e-8)


def test_de_bruijn_by_quadrature_on_atoms():
    # Not Gaussian: three atoms against two, with weights.
    x, y, w = [-1.0, 0.2, 1.5], [-0.5, 1.0], [0.2, 0.5, 0.3]
    for variance in (0.3, 1.0):
        step = 1e-3

        def kl(v):
            return ref.spread_atoms_divergences(x, y, np.sqrt(v), weights_x=w).kl

        numeric = (
            8 * (kl(variance + step) - kl(variance - step))
            - (kl(variance + 2 * step) - kl(variance - 2 * step))
        ) / (12 * step)
        fisher = ref.spread_atoms_divergences(x, y, np.sqrt(variance), weights_x=w).fisher
        np.testing.assert_allclose(numeric, -fisher / 2, rtol=1e-6)


def test_two_deltas_through_every_route():
    kl, fisher, l2 = ref.spread_atoms_divergences([0.0], [1.4], 0.7)
    np.testing.assert_allclose(kl, ref.two_deltas_kl(1.4, 0.7), rtol=1e-10)
    np.testing.assert_allclose(kl, ref.low_rank_spread_kl([1.4], 0.7), rtol=1e-10)
    zero = np.zeros((1, 1))
    np.testing.assert_allclose(
        kl, ref.spread_gaussian_kl(zero, zero, 0.7, mean_q=[1.4]), rtol=1e-10
    )
    np.testing.assert_allclose(fisher, 1.4**2 / 0.7**4, rtol=1e-10)
    np.testing.assert_allclose(l2, ref.spread_l2_distance([0.0], [1.4], 0.7), rtol=1e-9)


def test_l2_is_mmd_by_quadrature():
    x, y, w = [-1.0, 0.2, 1.5], [-0.5, 1.0], [0.2, 0.5, 0.3]
    closed = ref.spread_l2_distance(x, y, 0.4, weights_x=w)
    quadrature = ref.spread_atoms_divergences(x, y, 0.4, weights_x=w).l2
    np.testing.assert_allclose(closed, quadrature, rtol=1e-9)


def test_l2_in_two_dimensions():
    rng = np.random.default_rng(2)
    x, y, scale = rng.standard_normal((4, 2)), rng.standard_normal((3, 2)), 0.6

    def density(atoms, point):
        return np.mean([stats.multivariate_normal(a, scale**2).pdf(point) for a in atoms], axis=0)

    # The trapezoid rule converges geometrically for a smooth function that vanishes at the ends.
    grid = np.linspace(-8, 8, 161)
    points = np.stack(np.meshgrid(grid, grid), -1)
    numeric = np.square(density(x, points) - density(y, points)).sum() * (grid[1] - grid[0]) ** 2
    np.testing.assert_allclose(ref.spread_l2_distance(x, y, scale), numeric, rtol=1e-10)


@settings(deadline=None)
@given(
    dim=st.integers(1, 6),
    rank=st.integers(1, 8),
    scale=st.floats(1e-3, 1e3),
    size=st.floats(1e-3, 1e3),
    seed=st.integers(0, 100),
)
def test_mahalanobis_against_the_full_matrix(dim, rank, scale, size, seed):
    rng = np.random.default_rng(seed)
    difference, factor = rng.standard_normal((2, dim)), size * rng.standard_normal((dim, rank))
    covariance = scale**2 * np.eye(dim) + factor @ factor.T
    expected = np.sqrt(np.sum(difference * np.linalg.solve(covariance, difference.T).T, axis=-1))
    # The full matrix is the inexact side: its error grows with its condition number.
    tolerance = 1e-13 * np.linalg.cond(covariance) + 1e-12
    np.testing.assert_allclose(
        ref.mahalanobis_distance(difference, scale, factor), expected, rtol=tolerance
    )


def test_low_rank_kl_is_largest_without_a_factor():
    rng = np.random.default_rng(3)
    difference, factor = rng.standard_normal(5), rng.standard_normal((5, 2))
    values = [ref.low_rank_spread_kl(difference, 0.5, a * factor) for a in (0.0, 0.1, 1.0, 10.0)]
    np.testing.assert_allclose(values[0], ref.low_rank_spread_kl(difference, 0.5))
    assert (np.diff(values) < 0).all()


def test_low_rank_kl_of_a_wide_event_costs_no_square_matrix():
    # A 10^6 x 10^6 matrix would be 8 TB.
    factor = np.ones((1_000_000, 1))
    actual = ref.mahalanobis_distance(np.ones(1_000_000), 1.0, factor)
    np.testing.assert_allclose(actual, np.sqrt(1e6 / (1 + 1e6)), rtol=1e-9)


@settings(deadline=None)
@given(scale=st.floats(0.05, 5.0), factor=st.floats(1.01, 3.0), seed=st.integers(0, 50))
def test_spread_kl_never_grows_with_the_scale(scale, factor, seed):
    rng = np.random.default_rng(seed)
    cov_p, cov_q = random_covariance(rng, 3, 1), random_covariance(rng, 3, 2)
    less, more = (ref.spread_gaussian_kl(cov_p, cov_q, s) for s in (scale * factor, scale))
    assert 0 <= less <= more


def test_orders_of_integration_do_not_matter():
    # An atom far from all others is not missed by the quadrature.
    kl, _, _ = ref.spread_atoms_divergences([0.0, 500.0], [0.0, 501.0], 1.0)
    numeric, _ = integrate.quad(
        lambda v: stats.norm.pdf(v) * 0.5 * ((v - 1) ** 2 - v**2), -12, 12, epsabs=1e-13
    )
    np.testing.assert_allclose(kl, 0.5 * numeric, rtol=1e-9)


def test_errors_name_the_argument():
    eye = np.eye(2)
    with pytest.raises(ValueError, match=r"`covariance_q` must be positive definite.*needs noise"):
        ref.gaussian_kl(None, eye, None, np.diag([1.0, 0.0]))
    with pytest.raises(
        ValueError, match=r"`covariance_p` must be a square matrix, got shape \(2,\)"
    ):
        ref.gaussian_kl(None, [1.0, 2.0], None, eye)
    with pytest.raises(ValueError, match="`covariance_p` must be symmetric"):
        ref.gaussian_kl(None, [[1.0, 0.5], [0.0, 1.0]], None, eye)
    with pytest.raises(ValueError, match=r"same shape, got \(2, 2\) and \(3, 3\)"):
        ref.gaussian_kl(None, eye, None, np.eye(3))
    with pytest.raises(ValueError, match=r"`mean_q` must have shape \(2,\), got \(3,\)"):
        ref.gaussian_kl(None, eye, np.zeros(3), eye)
    with pytest.raises(ValueError, match="`scale` must be positive, got 0"):
        ref.spread_gaussian_kl(eye, eye, 0.0)
    with pytest.raises(ValueError, match=r"`factor` must have shape \(2, rank\), got \(3, 1\)"):
        ref.mahalanobis_distance([1.0, 2.0], 1.0, np.ones((3, 1)))
    with pytest.raises(ValueError, match="`difference` must have shape"):
        ref.mahalanobis_distance(1.0, 1.0)
    with pytest.raises(ValueError, match="`weights_x` must be probabilities that sum to one"):
        ref.spread_l2_distance([0.0, 1.0], [0.0], 1.0, weights_x=[0.5, 0.6])
    with pytest.raises(ValueError, match=r"`weights_y` must have shape \(1,\), got \(2,\)"):
        ref.spread_l2_distance([0.0, 1.0], [0.0], 1.0, weights_y=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"`y` must have shape \(num_atoms,\), got \(1, 1\)"):
        ref.spread_atoms_divergences([0.0], [[1.0]], 1.0)
