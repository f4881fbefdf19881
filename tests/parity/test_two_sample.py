# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Two-sample statistics of both backends and NumPy against double loops, values and gradients."""

import itertools

import numpy as np
import pytest
from every import MMD_KERNELS, VARIANCES
from twins import BACKENDS, compare_gradients

import pyro_spread
from numpyro_spread.infer import _two_sample as theirs
from pyro_spread.infer import _two_sample as ours
from spread_analysis import metrics
from spread_core.math import two_sample
from spread_core.math.distances import squared_distances

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(7, 3)), 0.5 + RNG.normal(size=(6, 3))
Y[2] = Y[4]  # coincident points
WIDE_X, WIDE_Y = 50 + RNG.normal(size=(7, 20)), 50 + RNG.normal(size=(6, 20))
WEIGHTS_X, WEIGHTS_Y = RNG.random(7), RNG.random(6)
WEIGHTS_X[3] = WEIGHTS_Y[0] = 0.0
DIRECTIONS = RNG.normal(size=(5, 3))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


WIDE = ["gaussian", "convolved", "laplace"]


def brute_force(kernel, x, y, weights_x=None, weights_y=None):
    weights_x = np.ones(len(x)) if weights_x is None else weights_x
    weights_y = np.ones(len(y)) if weights_y is None else weights_y

    def mean(a, b, u, v, same):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not same or i != j]
        total = sum(u[i] * v[j] * kernel(a[i] - b[j]) for i, j in pairs)
        return total / sum(u[i] * v[j] for i, j in pairs)

    return (
        mean(x, x, weights_x, weights_x, True)
        + mean(y, y, weights_y, weights_y, True)
        - 2 * mean(x, y, weights_x, weights_y, False)
    )


def brute_force_wasserstein(x, y, directions, p, weights_x, weights_y):
    """Mass moved step by step in the one order that is optimal on a line."""
    total = 0.0
    for direction in directions:
        piles = []
        for points, weights in ((x @ direction, weights_x), (y @ direction, weights_y)):
            order = np.argsort(points)
            piles.append([points[order], (weights / weights.sum())[order]])
        (a, u), (b, v) = piles
        u, v, i, j = u.copy(), v.copy(), 0, 0
        while i < len(a) and j < len(b):
            moved = min(u[i], v[j])
            total += moved * abs(a[i] - b[j]) ** p
            u[i] -= moved
            v[j] -= moved
            i, j = (i + 1, j) if u[i] <= v[j] else (i, j + 1)
    return total / len(directions)


def numerical_gradient(function, y, step=1e-5):
    gradient = np.zeros_like(y)
    for index in itertools.product(*map(range, y.shape)):
        shift = np.zeros_like(y)
        shift[index] = step
        gradient[index] = (function(y + shift) - function(y - shift)) / (2 * step)
    return gradient


class InNumPy:
    """A third, independent check: the same functions on NumPy arrays."""

    package = pyro_spread
    array = staticmethod(np.asarray)
    pick = staticmethod(lambda ours, theirs: two_sample)


def both(statistic, y):
    """Value and gradient of ``statistic(b, functions, y)``; NumPy has the value."""

    def function(b, y):
        return statistic(b, b.pick(ours, theirs), y)

    value, (gradient,) = compare_gradients(function, y, compiled=True, atol=1e-13)
    third = statistic(InNumPy, two_sample, y)
    assert isinstance(third, np.float64)
    np.testing.assert_allclose(third, value, rtol=1e-10, atol=1e-13)
    return value, gradient


@pytest.mark.parametrize("name", MMD_KERNELS)
@pytest.mark.parametrize("weighted", [False, True])
def test_mmd2_is_the_double_loop(name, weighted):
    make, kernel = MMD_KERNELS[name]
    weights = (WEIGHTS_X, WEIGHTS_Y) if weighted else (None, None)

    def statistic(b, f, y):
        given = [None if w is None else b.array(w) for w in weights]
        return f.mmd2_unbiased(make(b.package), b.array(X), y, *given)

    value, gradient = both(statistic, Y)
    np.testing.assert_allclose(value, brute_force(kernel, X, Y, *weights), rtol=1e-10)
    numerical = numerical_gradient(lambda y: brute_force(kernel, X, y, *weights), Y)
    if name == "laplace":  # no derivative where two points coincide
        gradient, numerical = (np.delete(g, [2, 4], 0) for g in (gradient, numerical))
    np.testing.assert_allclose(gradient, numerical, atol=2e-9)


@pytest.mark.parametrize("name", WIDE)
def test_matrix_product_far_from_the_origin(name):
    make, kernel = MMD_KERNELS[name]

    def statistic(b, f, y):
        return f.mmd2_unbiased(make(b.package), b.array(WIDE_X), y)

    value, _ = both(statistic, WIDE_Y)
    np.testing.assert_allclose(value, brute_force(kernel, WIDE_X, WIDE_Y), rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "block_size"), [("gaussian", 1), ("gaussian", 4), ("gaussian", 7), ("laplace", 6)]
)
def test_blocks_change_nothing(name, block_size):
    make, _ = MMD_KERNELS[name]
    calls = []

    def statistic(block_size):
        def of(b, f, y):
            def kernel(x, y):
                calls.append(len(x))
                return make(b.package)(x, y)

            weights = b.array(WEIGHTS_X), b.array(WEIGHTS_Y)
            return f.mmd2_unbiased(kernel, b.array(X), y, *weights, block_size)

        return of

    dense = both(statistic(None), Y)
    calls.clear()
    blocked = both(statistic(block_size), Y)
    assert max(calls) == block_size
    np.testing.assert_allclose(blocked[0], dense[0], rtol=1e-10)
    np.testing.assert_allclose(blocked[1], dense[1], rtol=1e-10, atol=1e-14)


def test_reference_metrics():
    value, _ = both(
        lambda b, f, y: f.mmd2_unbiased(b.package.GaussianKernel(1.3), b.array(X), y), Y
    )
    np.testing.assert_allclose(value, metrics.mmd2(X, Y, 1.3), rtol=1e-10)
    # The directions that spread_analysis draws.
    directions = np.random.default_rng(5).standard_normal((3, 9)).T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for y, p in itertools.product((Y, RNG.normal(size=X.shape)), (1, 2)):
        value, _ = both(
            lambda b, f, y, p=p: f.sliced_wasserstein(b.array(X), y, b.array(directions), p),
            y,
        )
        expected = metrics.sliced_wasserstein(X, y, 9, p, seed=5) ** p
        np.testing.assert_allclose(value, expected, rtol=1e-10)


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("weighted", [False, True])
def test_energy_distance_is_the_double_loop(beta, weighted):
    weights = (WEIGHTS_X, WEIGHTS_Y) if weighted else (None, None)

    def statistic(b, f, y):
        given = [None if w is None else b.array(w) for w in weights]
        return f.energy_distance(b.array(X), y, *given, beta=beta)

    def kernel(r):
        return -((r @ r) ** (beta / 2))

    value, gradient = both(statistic, Y)
    np.testing.assert_allclose(value, brute_force(kernel, X, Y, *weights), rtol=1e-10)
    numerical = numerical_gradient(lambda y: brute_force(kernel, X, y, *weights), Y)
    assert np.isfinite(gradient).all()
    apart = [0, 1, 3, 5]
    np.testing.assert_allclose(gradient[apart], numerical[apart], atol=2e-9)


@pytest.mark.parametrize("p", [1, 2, 2.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_sliced_wasserstein_moves_the_mass(p, weighted):
    weights = (WEIGHTS_X, WEIGHTS_Y) if weighted else (None, None)
    apart = np.delete(Y, 4, 0)
    if weighted:
        weights = WEIGHTS_X, np.delete(WEIGHTS_Y, 4)

    def statistic(b, f, y):
        given = [None if w is None else b.array(w) for w in weights]
        return f.sliced_wasserstein(b.array(X), y, b.array(DIRECTIONS), p, *given)

    filled = [np.ones(len(s)) if w is None else w for s, w in zip((X, apart), weights, strict=True)]

    def exact(y):
        return brute_force_wasserstein(X, y, DIRECTIONS, p, *filled)

    value, gradient = both(statistic, apart)
    np.testing.assert_allclose(value, exact(apart), rtol=1e-10)
    np.testing.assert_allclose(gradient, numerical_gradient(exact, apart), atol=1e-8)


STATISTICS = {
    "mmd2": lambda b, f, x, y, w, v: f.mmd2_unbiased(b.package.GaussianKernel(1.0), x, y, w, v),
    "mmd2-blocks": lambda b, f, x, y, w, v: f.mmd2_unbiased(
        b.package.LaplaceKernel(1.0), x, y, w, v, 2
    ),
    "energy": lambda b, f, x, y, w, v: f.energy_distance(x, y, w, v),
    "sliced": lambda b, f, x, y, w, v: f.sliced_wasserstein(
        x, y, b.array(np.resize(DIRECTIONS, (5, x.shape[1]))), 2, w, v
    ),
}


@pytest.mark.parametrize(
    ("name", "data"),
    [*((name, "narrow") for name in STATISTICS), ("mmd2", "wide"), ("energy", "wide")],
)
def test_weight_zero_removes_a_sample(name, data):
    """Even one whose distances overflow, and which would drag the centre along."""
    x, y = (X, Y) if data == "narrow" else (WIDE_X, WIDE_Y)
    weights_x, weights_y = np.array([0, 1, 1, 0.5, 2, 1, 0]), np.array([1, 1, 0, 1, 0.2, 1])
    huge_x, huge_y = x.copy(), y.copy()
    huge_x[[0, 6]], huge_y[2] = 1e200, -1e200

    def statistic(x, w, v):
        return lambda b, f, y: STATISTICS[name](b, f, b.array(x), y, b.array(w), b.array(v))

    kept_x, kept_y = weights_x > 0, weights_y > 0
    value, gradient = both(statistic(huge_x, weights_x, weights_y), huge_y)
    kept, kept_gradient = both(
        statistic(x[kept_x], weights_x[kept_x], weights_y[kept_y]), y[kept_y]
    )
    np.testing.assert_allclose(value, kept, rtol=1e-10)
    np.testing.assert_allclose(gradient[kept_y], kept_gradient, rtol=1e-10, atol=1e-13)
    assert not gradient[~kept_y].any()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", ["energy", "sliced", *MMD_KERNELS])
def test_a_sample_of_nan_makes_the_statistic_nan(name, wide, weighted):
    """It is not a sample that coincides with all others."""
    if wide and name == "convolved-mixture":
        pytest.skip("it is made for samples of three dims")
    x, y = (WIDE_X, WIDE_Y.copy()) if wide else (X, Y.copy())
    y[1, 0] = np.nan
    weights = (np.ones(len(x)), np.arange(len(y))) if weighted else (None, None)

    def statistic(b, f, y):
        given = [None if w is None else b.array(w) for w in weights]
        if name in STATISTICS:
            return STATISTICS[name](b, f, b.array(x), y, *given)
        return f.mmd2_unbiased(MMD_KERNELS[name][0](b.package), b.array(x), y, *given)

    value, _ = both(statistic, y)
    assert np.isnan(value)


@pytest.mark.parametrize("width", [3, 20])
def test_squares_that_overflow_are_inf(width):
    x, y = np.zeros((1, width)), np.full((2, width), 1e200) * [[1.0], [-1.0]]
    with np.errstate(over="ignore", invalid="ignore"):
        for array in (np.asarray, *(b.array for b in BACKENDS)):
            assert np.isinf(np.asarray(squared_distances(array(x), array(y)))).all()


@pytest.mark.parametrize("width", [3, 20])
def test_coincident_points_do_not_pull(width):
    points = 50 + RNG.normal(size=(1, width))

    def total(b, y):
        return squared_distances(b.array(points), y).sum()

    _, (gradient,) = compare_gradients(total, points, compiled=True)
    assert not gradient.any()


@pytest.mark.parametrize("name", ["energy", "sliced"])
def test_only_ratios_of_weights_count(name):
    def statistic(w, v):
        return lambda b, f, y: STATISTICS[name](b, f, b.array(X), y, b.array(w), b.array(v))

    value, _ = both(statistic(WEIGHTS_X, WEIGHTS_Y), Y)
    scaled, _ = both(statistic(1e200 * WEIGHTS_X, 1e-200 * WEIGHTS_Y), Y)
    np.testing.assert_allclose(scaled, value, rtol=1e-10)


def test_one_dominating_weight():
    """The pair weights of a U-statistic must not be a difference of squares."""
    weights = np.array([1.0, 1e-12, 1e-12])
    x, y = np.array([[0.0], [1.0], [1.0]]), np.array([[9.0], [9.0]])

    def statistic(b, f, y):
        return f.energy_distance(b.array(x), y, b.array(weights))

    value, _ = both(statistic, y)
    np.testing.assert_allclose(value, 2 * 9 - 1, rtol=1e-10)


def test_tensors_as_parameters_carry_gradients():
    def value(b, width, variance):
        kernel = b.package.GaussianKernel(width).convolved(variance)
        return b.pick(ours, theirs).mmd2_unbiased(kernel, b.array(X), b.array(Y))

    compare_gradients(value, np.array([0.6, 1.1]), VARIANCES, compiled=True)


# What is refused, and a part of the message, as functions of (package, functions, array).
MISTAKES = [
    (lambda p, f, a: p.GaussianKernel(0.0), ValueError, "GaussianKernel: bandwidth must be pos"),
    (lambda p, f, a: p.GaussianKernel([1.0, -2.0]), ValueError, "GaussianKernel: bandwidth"),
    (lambda p, f, a: p.GaussianKernel([]), ValueError, "bandwidth must be a number, or a seq"),
    (lambda p, f, a: p.GaussianKernel(a(np.ones((2, 2)))), ValueError, r"got shape \(2, 2\)"),
    (lambda p, f, a: p.LaplaceKernel(float("nan")), ValueError, "LaplaceKernel: bandwidth"),
    (lambda p, f, a: p.RationalQuadraticKernel(-1.0), ValueError, "lengthscale must be pos"),
    (lambda p, f, a: p.RationalQuadraticKernel(1.0, 0.0), ValueError, "alpha must be positive"),
    (
        lambda p, f, a: p.RationalQuadraticKernel([1.0, 2.0], [1.0, 2.0, 3.0]),
        ValueError,
        "2 lengthscales do not pair with 3 alphas",
    ),
    (lambda p, f, a: p.GaussianKernel(1.0).convolved(-0.1), ValueError, "variance must be a"),
    (lambda p, f, a: p.GaussianKernel(1.0).convolved([[1.0]]), ValueError, "number or a vector"),
    (
        lambda p, f, a: p.GaussianKernel(1.0).convolved([1.0, 2.0])(a(X), a(Y)),
        ValueError,
        "does not fit samples of 3 dim",
    ),
    (lambda p, f, a: p.GaussianKernel(1.0)(a(X[0]), a(Y)), ValueError, "x must be a matrix"),
    (lambda p, f, a: p.GaussianKernel(1.0)(a(X), a(Y[:, 1:])), ValueError, "samples of one space"),
    (lambda p, f, a: p.GaussianKernel(1.0)(a(X), a(np.ones((2, 3), int))), TypeError, "y must be"),
    (lambda p, f, a: p.GaussianKernel(1.0)([[1.0]], a(Y)), TypeError, "x must be .* got list"),
    (
        lambda p, f, a: p.GaussianKernel(1.0)(a(X), a(Y.astype(np.float32))),
        TypeError,
        "x and y must have one floating type",
    ),
    (lambda p, f, a: f.energy_distance(a(X[:1]), a(Y)), ValueError, "x holds 1 sample"),
    (lambda p, f, a: f.energy_distance(a(X), a(Y[:0])), ValueError, "y holds 0 sample"),
    (
        lambda p, f, a: f.sliced_wasserstein(a(X), a(Y[:1]), a(DIRECTIONS)),
        ValueError,
        "y holds 1 sample",
    ),
    (lambda p, f, a: f.energy_distance(a(X), a(Y), beta=2.0), ValueError, "beta must lie"),
    (lambda p, f, a: f.energy_distance(a(X), a(Y), beta=0.0), ValueError, "beta must lie"),
    (
        lambda p, f, a: f.energy_distance(a(X), a(Y), block_size=0),
        ValueError,
        "block_size must be a positive integer",
    ),
    (
        lambda p, f, a: f.energy_distance(a(X), a(Y), a(np.ones(6))),
        ValueError,
        "weights_x must hold one weight for each of 7",
    ),
    (
        lambda p, f, a: f.energy_distance(a(X), a(Y), None, a(-np.ones(6))),
        ValueError,
        "weights_y must be nonnegative",
    ),
    (
        lambda p, f, a: f.energy_distance(a(X), a(Y), None, a(np.eye(6)[0])),
        ValueError,
        "at least two positive weights",
    ),
    (
        lambda p, f, a: f.sliced_wasserstein(a(X), a(Y), a(DIRECTIONS), 0.5),
        ValueError,
        "p must be a finite number of at least 1",
    ),
    (
        lambda p, f, a: f.sliced_wasserstein(a(X), a(Y), a(DIRECTIONS[:, :2])),
        ValueError,
        "directions must be a nonempty matrix",
    ),
]


@pytest.mark.parametrize(("mistake", "kind", "match"), MISTAKES)
def test_refusals(mistake, kind, match):
    for b in BACKENDS:
        with pytest.raises(kind, match=match):
            mistake(b.package, b.pick(ours, theirs), b.array)
