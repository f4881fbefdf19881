# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Sample metrics against values known exactly, and against their own null distributions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from sklearn.datasets import load_digits

import spread_analysis as sa
from spread_analysis import reference as ref

# Maximum mean discrepancy


def direct_mmd2(x, y, bandwidth):
    def kernel(a, b):
        return np.exp(-np.square(a - b).sum() / (2 * bandwidth**2))

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_mmd_is_the_double_sum():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 3)), rng.standard_normal((5, 3)) + 0.5
    np.testing.assert_allclose(sa.mmd2(x, y, 0.8), direct_mmd2(x, y, 0.8), rtol=1e-12)
    pooled = np.concatenate([x, y])
    distances = [np.linalg.norm(a - b) for i, a in enumerate(pooled) for b in pooled[:i]]
    np.testing.assert_allclose(sa.median_heuristic(x, y), np.median(distances), rtol=1e-14)
    assert sa.mmd2(x, y) == sa.mmd2(x, y, sa.median_heuristic(x, y))


def test_mmd_is_unbiased_under_the_null_and_the_alternative():
    rng, repeats, width = np.random.default_rng(1), 400, 1.0
    for shift in (0.0, 0.7):
        values = np.array(
            [
                sa.mmd2(rng.standard_normal((30, 2)), rng.standard_normal((20, 2)) + shift, width)
                for _ in range(repeats)
            ]
        )

        # E k(x, y) for x - y ~ N(m, 2 I) and a Gaussian kernel, per dimension.
        def mean_kernel(mean):
            variance = 2.0 + width**2
            return (width / np.sqrt(variance) * np.exp(-(mean**2) / (2 * variance))) ** 2

        exact = 2 * mean_kernel(0.0) - 2 * mean_kernel(shift)
        assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(repeats)
        if shift == 0.0:
            assert 0.3 < (values < 0).mean() < 0.8


def test_mmd_in_blocks():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((1100, 2)), rng.standard_normal((600, 2))
    kernel = [np.exp(-0.5 * np.square(a[:, None] - b).sum(-1)) for a, b in ((x, x), (y, y), (x, y))]
    expected = (
        (kernel[0].sum() - 1100) / (1100 * 1099)
        + (kernel[1].sum() - 600) / (600 * 599)
        - 2 * kernel[2].mean()
    )
    np.testing.assert_allclose(sa.mmd2(x, y, 1.0), expected, rtol=1e-9)


@pytest.mark.parametrize("dim", [16, 17, 100])
def test_distances_by_matrix_product_keep_their_digits(dim):
    # Far from the origin the product alone would leave errors of 1e6^2 eps / h^2 = 1e-4.
    rng = np.random.default_rng(5)
    x, y = 1e6 + rng.standard_normal((2, 20, dim))
    width = np.sqrt(dim)
    np.testing.assert_allclose(
        sa.mmd2(x, y, width), direct_mmd2(x, y, width), rtol=1e-9, atol=1e-13
    )
    np.testing.assert_array_equal(sa.precision_recall(x, x), (1.0, 1.0))
    far = np.round(1e8 + rng.standard_normal((2, 50, dim)), 6)
    near = far - 1e8  # exact
    assert sa.precision_recall(*far) == sa.precision_recall(*near)
    # A model collapsed onto four of the data: its radii are zero, and equal points lie on them.
    collapsed = np.repeat(x[:4], 5, axis=0)
    np.testing.assert_array_equal(sa.precision_recall(x, collapsed), (1.0, 4 / 20))


def test_mmd_agrees_with_the_l2_distance_of_spread_atoms():
    # The V-statistic is the U-statistic with its diagonal put back.
    rng = np.random.default_rng(3)
    x, y, scale = rng.standard_normal((6, 2)), rng.standard_normal((6, 2)), 0.5
    width = np.sqrt(2) * scale
    u = sa.mmd2(x, y, width)
    kernels = [np.exp(-np.square(a[:, None] - a).sum(-1) / (2 * width**2)) for a in (x, y)]
    off_diagonal = sum(k.sum() - 6 for k in kernels)
    v = u - off_diagonal / 30 + sum(k.sum() for k in kernels) / 36
    norm = 2 * np.pi * width**2
    np.testing.assert_allclose(ref.spread_l2_distance(x, y, scale), v / norm, rtol=1e-10)


# Sliced Wasserstein distance


def test_sliced_wasserstein_of_a_shift_on_the_line():
    x = np.random.default_rng(0).standard_normal((50, 1))
    for p in (1, 2, 3.5):
        np.testing.assert_allclose(sa.sliced_wasserstein(x, x + 1.7, p=p), 1.7, rtol=1e-12)


def test_sliced_wasserstein_of_a_shift_in_space():
    # W_2^2 along theta is (theta . m)^2, whose mean is |m|^2 / d and whose squared coefficient of
    # variation is 2 (d - 1) / (d + 2).
    dim, count = 5, 20_000
    shift = np.arange(1.0, dim + 1)
    x = np.random.default_rng(1).standard_normal((10, dim))
    squared = sa.sliced_wasserstein(x, x + shift, num_projections=count) ** 2
    mean = shift @ shift / dim
    std = mean * np.sqrt(2 * (dim - 1) / (dim + 2))
    assert abs(squared - mean) < 4 * std / np.sqrt(count)


def test_sliced_wasserstein_of_unequal_sizes_is_exact():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((6, 1)), rng.standard_normal((9, 1))
    np.testing.assert_allclose(
        sa.sliced_wasserstein(x, y, p=1), stats.wasserstein_distance(x[:, 0], y[:, 0]), rtol=1e-12
    )
    # Repeating every point leaves the empirical distribution as it is.
    repeated = np.repeat(x, 3, axis=0)
    np.testing.assert_allclose(sa.sliced_wasserstein(x, repeated), 0.0, atol=1e-15)
    np.testing.assert_allclose(
        sa.sliced_wasserstein(x, y), sa.sliced_wasserstein(repeated, y), rtol=1e-12
    )


@settings(deadline=None)
@given(
    num_x=st.integers(2, 12),
    num_y=st.integers(2, 12),
    dim=st.integers(1, 4),
    p=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 1000),
)
def test_sliced_wasserstein_is_a_metric(num_x, num_y, dim, p, seed):
    rng = np.random.default_rng(seed)
    x, y, z = (rng.standard_normal((n, dim)) for n in (num_x, num_y, 5))

    def distance(a, b):
        return sa.sliced_wasserstein(a, b, num_projections=10, p=p)

    np.testing.assert_allclose(distance(x, y), distance(y, x), rtol=1e-12)
    assert distance(x, x) == 0.0
    assert distance(x, y) <= distance(x, z) + distance(z, y) + 1e-12
    np.testing.assert_allclose(distance(3 * x, 3 * y), 3 * distance(x, y), rtol=1e-9)


def test_sliced_wasserstein_repeats_with_its_seed():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((20, 4)), rng.standard_normal((20, 4))
    assert sa.sliced_wasserstein(x, y, seed=5) == sa.sliced_wasserstein(x, y, seed=5)
    assert sa.sliced_wasserstein(x, y, seed=5) != sa.sliced_wasserstein(x, y, seed=6)


# Fréchet distance


def test_frechet_of_commuting_gaussians():
    mean, a, b = np.array([1.0, -2.0]), np.diag([4.0, 9.0]), np.diag([1.0, 0.0])
    actual = sa.gaussian_frechet_distance(np.zeros(2), a, mean, b)
    np.testing.assert_allclose(actual, 5 + (2 - 1) ** 2 + 9, rtol=1e-14)


def test_frechet_against_the_matrix_square_root():
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((2, 6, 6))
    a, b = (f @ f.T for f in factors)
    expected = np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    zero = np.zeros(6)
    np.testing.assert_allclose(sa.gaussian_frechet_distance(zero, a, zero, b), expected, rtol=1e-10)


@pytest.mark.parametrize("num", [4, 300])
def test_frechet_of_samples_is_that_of_their_moments(num):
    # Four samples in five dimensions have a singular covariance.
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((num, 5)), 2 * rng.standard_normal((300, 5)) + 1
    expected = sa.gaussian_frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    # The root of a singular covariance has half of its digits, that of the data all of them.
    tolerance = 1e-7 if num == 4 else 1e-10
    np.testing.assert_allclose(sa.frechet_distance(x, y), expected, rtol=tolerance)
    # A rotation and a shift of both leave it alone; scaling multiplies it by the square.
    rotation = linalg.qr(rng.standard_normal((5, 5)))[0]
    moved = sa.frechet_distance(3 * x @ rotation + 7, 3 * y @ rotation + 7)
    np.testing.assert_allclose(moved, 9 * sa.frechet_distance(x, y), rtol=1e-10)


def test_frechet_keeps_its_digits_on_near_singular_features():
    # Features of scale 1e-9 beside features of scale 1: forming the covariance would lose them.
    rng = np.random.default_rng(2)
    x = rng.standard_normal((100, 3)) * [1.0, 1e-3, 1e-9]
    assert sa.frechet_distance(x, x) < 1e-14
    only_small = x + np.array([0.0, 0.0, 1e-9])
    assert sa.frechet_distance(x, only_small) < 1e-14


def test_frechet_converges_to_the_gaussian_value():
    # W_2^2 of N(0, 1) and N(m, s^2) is m^2 + (1 - s)^2; delta method for the standard error.
    num, mean, std = 200_000, 0.5, 2.0
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((num, 1)), mean + std * rng.standard_normal((num, 1))
    error = sa.frechet_distance(x, y) - (mean**2 + (1 - std) ** 2)
    variance = (2 * mean) ** 2 * (1 + std**2) + (2 * (1 - std)) ** 2 * (1 + std**2) / 2
    assert abs(error) < 4 * np.sqrt(variance / num)


# Classifier two-sample test


def test_c2st_is_a_half_on_equal_and_one_on_separate_samples():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, 2)), rng.standard_normal((300, 2))
    # 600 held-out guesses at chance: the folds share data, hence five and not four deviations.
    assert abs(sa.c2st(x, y) - 0.5) < 5 * 0.5 / np.sqrt(600)
    assert sa.c2st(x, y + 20) == 1.0


def test_c2st_approaches_the_bayes_accuracy():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((500, 1)), rng.standard_normal((500, 1)) + 2.0
    bayes = stats.norm.cdf(1.0)
    assert abs(sa.c2st(x, y) - bayes) < 4 * np.sqrt(bayes * (1 - bayes) / 1000)


def test_c2st_standardises_by_the_reference_and_repeats():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((60, 2)), rng.standard_normal((60, 2)) + 1
    one = sa.c2st(x, y, hidden_layer_sizes=(5,))
    assert one == sa.c2st(x, y, hidden_layer_sizes=(5,))
    moved = sa.c2st(1024.0 * x + 512.0, 1024.0 * y + 512.0, hidden_layer_sizes=(5,))
    # The same network on the same numbers up to rounding; one held-out sample may flip.
    assert abs(one - moved) <= 1 / 120 + 1e-12
    constant = np.zeros((60, 1))
    assert 0 <= sa.c2st(constant, constant, hidden_layer_sizes=(5,)) <= 1


# Precision and recall


def test_precision_and_recall_of_modes():
    rng = np.random.default_rng(0)
    near, far = rng.standard_normal((200, 2)), rng.standard_normal((200, 2)) + 100
    both = np.concatenate([near, far])
    # A model that misses a mode is precise without recall, one with a spurious mode the reverse.
    dropped = sa.precision_recall(both, rng.standard_normal((200, 2)))
    assert dropped.precision > 0.9
    assert 0.4 < dropped.recall <= 0.5
    spurious = sa.precision_recall(near, both)
    assert spurious.recall == 1.0
    assert 0.45 < spurious.precision <= 0.5
    assert sa.precision_recall(near, far) == (0.0, 0.0)
    assert sa.precision_recall(near, near) == (1.0, 1.0)


def test_precision_and_recall_by_hand():
    # Radii of the real points 0, 1, 3: 1, 1, 2. Those of the generated 0.5, 6, 7: 5.5, 1, 1.
    real, generated = [[0.0], [1.0], [3.0]], [[0.5], [6.0], [7.0]]
    precision, recall = sa.precision_recall(real, generated, k=1)
    np.testing.assert_allclose([precision, recall], [1 / 3, 1.0])


def test_precision_and_recall_against_the_definition():
    rng = np.random.default_rng(1)
    real, generated, k = rng.standard_normal((40, 3)), 1.3 * rng.standard_normal((30, 3)), 3

    def inside(samples, manifold):
        radii = [np.sort(np.linalg.norm(manifold - m, axis=1))[k] for m in manifold]
        return np.mean([(np.linalg.norm(manifold - s, axis=1) <= radii).any() for s in samples])

    actual = sa.precision_recall(real, generated, k)
    np.testing.assert_allclose(actual, [inside(generated, real), inside(real, generated)])


# All of them


METRICS = {
    "mmd2": (sa.mmd2, "x", "y"),
    "sliced_wasserstein": (sa.sliced_wasserstein, "x", "y"),
    "frechet_distance": (sa.frechet_distance, "features_x", "features_y"),
    "c2st": (sa.c2st, "x", "y"),
    "precision_recall": (sa.precision_recall, "real", "generated"),
    "median_heuristic": (sa.median_heuristic, "x", "y"),
}


@pytest.mark.parametrize("name", METRICS)
def test_malformed_samples(name):
    metric, first, second = METRICS[name]
    good = np.random.default_rng(0).standard_normal((6, 2))
    with pytest.raises(ValueError, match=rf"`{first}` must have shape .*pass {first}\[:, None\]"):
        metric(good[:, 0], good)
    with pytest.raises(ValueError, match=f"`{second}` must hold at least 2 samples, got 1"):
        metric(good, good[:1])
    with pytest.raises(ValueError, match=f"`{second}` must be finite, but 2 of its 12 entries"):
        metric(good, np.where(np.arange(12).reshape(6, 2) < 2, np.nan, good))
    with pytest.raises(ValueError, match=r"same event shape, got \(2,\) and \(1,\)"):
        metric(good, good[:, :1])
    with pytest.raises(ValueError, match=f"`{first}` must hold real numbers"):
        metric([["a", "b"], ["c", "d"]], good)
    with pytest.raises(ValueError, match=f"`{first}` has an empty event"):
        metric(np.zeros((3, 0)), np.zeros((3, 0)))


@pytest.mark.parametrize("name", METRICS)
def test_events_are_flattened_and_float32_is_fine(name):
    metric = METRICS[name][0]
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 12, 2, 3)).astype(np.float32)
    shaped = metric(x, y)
    flat = metric(x.reshape(12, 6).astype(np.float64), y.reshape(12, 6).astype(np.float64))
    np.testing.assert_array_equal(shaped, flat)
    assert not isinstance(shaped, np.ndarray)


def test_other_arguments():
    x = np.arange(6.0).reshape(3, 2)
    with pytest.raises(ValueError, match="`bandwidth` must be positive, got 0"):
        sa.mmd2(x, x, 0.0)
    with pytest.raises(ValueError, match="coincide: pass a `bandwidth`"):
        sa.mmd2(np.zeros((3, 1)), np.zeros((3, 1)))
    with pytest.raises(
        ValueError, match="`num_projections` must be an integer of at least 1, got 0"
    ):
        sa.sliced_wasserstein(x, x, num_projections=0)
    with pytest.raises(ValueError, match=r"`p` must be finite and at least 1, got 0.5"):
        sa.sliced_wasserstein(x, x, p=0.5)
    with pytest.raises(
        ValueError, match=r"equally many samples.*got 3 and 2; subsample the larger"
    ):
        sa.c2st(x, x[:2])
    with pytest.raises(
        ValueError, match="`num_folds` must be at most the number of samples 3, got 5"
    ):
        sa.c2st(x, x)
    with pytest.raises(ValueError, match="`num_folds` must be an integer of at least 2, got 1"):
        sa.c2st(x, x, num_folds=1)
    with pytest.raises(ValueError, match="`generated` must hold more than k=2 samples, got 2"):
        sa.precision_recall(x, x[:2], k=2)
    with pytest.raises(ValueError, match="`k` must be an integer of at least 1, got 0"):
        sa.precision_recall(x, x, k=0)
    with pytest.raises(ValueError, match="must share one dimension"):
        sa.gaussian_frechet_distance([0.0], [[1.0]], [0.0, 0.0], np.eye(2))


def test_metrics_order_real_images_by_their_noise():
    digits = load_digits().images / 16.0
    rng = np.random.default_rng(0)
    half, other = digits[rng.permutation(len(digits))[:800]].reshape(2, 400, 8, 8)
    noisy = [other + scale * rng.standard_normal(other.shape) for scale in (0.0, 0.15, 0.3, 0.6)]
    for metric in (sa.mmd2, sa.sliced_wasserstein, sa.frechet_distance):
        values = [metric(half, images) for images in noisy]
        assert values == sorted(values), metric
    precisions = [sa.precision_recall(half, images).precision for images in noisy]
    assert precisions == sorted(precisions, reverse=True)
    assert precisions[0] > 0.7
    assert precisions[-1] < 0.1
