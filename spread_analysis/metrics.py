# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Metrics between two sets of samples. Event dimensions are flattened; arrays are float64.

None of them needs a density, so they judge a deterministic generator and a likelihood model alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg
from scipy.spatial.distance import cdist, pdist

from spread_core.optional import import_extra
from spread_core.validation import (
    FloatArray,
    as_count,
    as_covariance,
    as_finite,
    as_positive,
    as_sample_pair,
)

# Rows of a distance matrix held at once: 512 x 10,000 doubles are 40 MB, the whole would be 800.
_BLOCK = 512


def median_heuristic(x: ArrayLike, y: ArrayLike, max_samples: int = 1000) -> float:
    """Median distance between different points of the pooled samples, a kernel bandwidth.

    :param x: Samples of shape ``(num_x,) + event_shape``.
    :param y: Samples of shape ``(num_y,) + event_shape``.
    :param max_samples: At most that many evenly spaced samples of each set are used.
    :return: A positive number.
    :raises ValueError: If the samples are malformed or all points coincide.

    >>> median_heuristic([[0.0], [0.0]], [[3.0], [3.0]])
    3.0
    """
    flat_x, flat_y = as_sample_pair(x, y)
    limit = as_count(max_samples, "max_samples", 2)
    pooled = np.concatenate([_thin(flat_x, limit), _thin(flat_y, limit)])
    distances = pdist(pooled)
    distances = distances[distances > 0]
    if distances.size == 0:
        raise ValueError("All points of `x` and `y` coincide: pass a `bandwidth`.")
    return float(np.median(distances))


def _thin(samples: FloatArray, limit: int) -> FloatArray:
    if len(samples) <= limit:
        return samples
    return samples[np.linspace(0, len(samples) - 1, limit).astype(int)]


def _squared_distances(x: FloatArray, y: FloatArray) -> Iterator[FloatArray]:
    """Yield squared distances of blocks of rows of ``x`` to all of ``y``."""
    if x.shape[1] <= 16:
        for start in range(0, len(x), _BLOCK):
            yield cdist(x[start : start + _BLOCK], y, "sqeuclidean")
        return
    # |x|^2 + |y|^2 - 2 x.y is a matrix product, many times faster on images. It loses digits when
    # the points are far from the origin, hence the centre.
    centre = y.mean(0)
    centred_y = y - centre
    norms_y = np.square(centred_y).sum(1)
    for start in range(0, len(x), _BLOCK):
        block = x[start : start + _BLOCK] - centre
        norms = np.square(block).sum(1)[:, None] + norms_y
        squared = norms - 2.0 * (block @ centred_y.T)
        # Equal points come out as rounding errors of either sign.
        yield np.where(squared > 1e-13 * norms, squared, 0.0)


def _kernel_sum(x: FloatArray, y: FloatArray, bandwidth: float) -> float:
    scale = -0.5 / bandwidth**2
    return sum(float(np.exp(scale * squared).sum()) for squared in _squared_distances(x, y))


def mmd2(x: ArrayLike, y: ArrayLike, bandwidth: float | None = None) -> float:
    r"""Unbiased squared maximum mean discrepancy with a Gaussian kernel.

    .. math::

        \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
        - \frac{2}{nm} \sum_{i, j} k(x_i, y_j), \qquad k(x, y) = e^{-|x - y|^2 / 2 h^2}

    (Gretton et al. 2012, "A kernel two-sample test", lemma 6). It is unbiased, so it is negative
    about half of the time when the distributions agree.

    :param x: Samples of shape ``(num_x,) + event_shape``.
    :param y: Samples of shape ``(num_y,) + event_shape``.
    :param bandwidth: The :math:`h`; None is the median heuristic on the pooled samples.
    :raises ValueError: If the samples are malformed or ``bandwidth`` is not positive.

    >>> mmd2([[0.0], [0.0]], [[1.0], [1.0]], bandwidth=1.0) == 2 - 2 * float(np.exp(-0.5))
    True
    """
    flat_x, flat_y = as_sample_pair(x, y)
    if bandwidth is None:
        bandwidth = median_heuristic(x, y)
    width = float(as_positive(bandwidth, "bandwidth"))
    num_x, num_y = len(flat_x), len(flat_y)
    # Each diagonal entry of a Gaussian kernel is one, so the U-statistic subtracts their number.
    within_x = (_kernel_sum(flat_x, flat_x, width) - num_x) / (num_x * (num_x - 1))
    within_y = (_kernel_sum(flat_y, flat_y, width) - num_y) / (num_y * (num_y - 1))
    return within_x + within_y - 2.0 * _kernel_sum(flat_x, flat_y, width) / (num_x * num_y)


def sliced_wasserstein(
    x: ArrayLike, y: ArrayLike, num_projections: int = 200, p: float = 2, seed: int = 0
) -> float:
    r"""Sliced Wasserstein distance: the mean over directions of the exact one-dimensional distance.

    .. math:: \left(\frac1L \sum_{l=1}^L W_p^p(\theta_l^\top x, \theta_l^\top y)\right)^{1/p}

    with directions uniform on the sphere (Bonneel et al. 2015, "Sliced and Radon Wasserstein
    barycenters of measures"). Sample sizes may differ: the quantile functions are integrated
    exactly over their common steps.

    :param x: Samples of shape ``(num_x,) + event_shape``.
    :param y: Samples of shape ``(num_y,) + event_shape``.
    :param num_projections: Number :math:`L` of random directions.
    :param p: Order of the distance, at least 1.
    :param seed: Seed of the directions.
    :raises ValueError: If the samples are malformed, ``num_projections`` is not a positive integer
        or ``p < 1``.

    >>> sliced_wasserstein([[0.0], [1.0]], [[2.0], [3.0]])
    2.0
    """
    flat_x, flat_y = as_sample_pair(x, y)
    count = as_count(num_projections, "num_projections")
    if not 1 <= p < np.inf:
        raise ValueError(f"`p` must be finite and at least 1, got {p}.")
    directions = np.random.default_rng(seed).standard_normal((flat_x.shape[1], count))
    directions /= np.linalg.norm(directions, axis=0)

    # Quantile functions are steps at i/n and j/m. In units of 1/(nm) the steps are integers, so
    # that equal levels merge exactly.
    num_x, num_y = len(flat_x), len(flat_y)
    ends = np.union1d(np.arange(1, num_x + 1) * num_y, np.arange(1, num_y + 1) * num_x)
    widths = np.diff(ends, prepend=0) / (num_x * num_y)
    steps_x, steps_y = (ends - 1) // num_y, (ends - 1) // num_x

    total = 0.0
    for block in np.array_split(directions, -(-count // 64), axis=1):
        quantiles_x = np.sort(flat_x @ block, axis=0)[steps_x]
        quantiles_y = np.sort(flat_y @ block, axis=0)[steps_y]
        total += float((widths @ np.abs(quantiles_x - quantiles_y) ** p).sum())
    return (total / count) ** (1.0 / p)


def gaussian_frechet_distance(
    mean_x: ArrayLike, covariance_x: ArrayLike, mean_y: ArrayLike, covariance_y: ArrayLike
) -> float:
    r"""Squared Fréchet (2-Wasserstein) distance of two Gaussians.

    .. math:: |m_x - m_y|^2 + \mathrm{tr}(S_x) + \mathrm{tr}(S_y)
        - 2\, \mathrm{tr}\left((S_x^{1/2} S_y S_x^{1/2})^{1/2}\right)

    (Dowson and Landau 1982, eq. 4). Singular covariances are fine.

    :param mean_x: Mean of shape ``(dim,)``.
    :param covariance_x: Positive semi-definite matrix of shape ``(dim, dim)``.
    :param mean_y: Mean of shape ``(dim,)``.
    :param covariance_y: Positive semi-definite matrix of shape ``(dim, dim)``.
    :raises ValueError: If shapes do not fit or a covariance is not symmetric.

    >>> gaussian_frechet_distance([0.0], [[1.0]], [3.0], [[4.0]])
    10.0
    """
    m_x, m_y = as_finite(mean_x, "mean_x"), as_finite(mean_y, "mean_y")
    s_x = as_covariance(covariance_x, "covariance_x")
    s_y = as_covariance(covariance_y, "covariance_y")
    if not m_x.shape == m_y.shape == s_x.shape[:1] == s_y.shape[:1]:
        raise ValueError(
            "`mean_x`, `mean_y` and the covariances must share one dimension, got shapes "
            f"{m_x.shape}, {m_y.shape}, {s_x.shape} and {s_y.shape}."
        )
    return _frechet(m_x, _symmetric_root(s_x), m_y, _symmetric_root(s_y))


def _symmetric_root(covariance: FloatArray) -> FloatArray:
    values, vectors = linalg.eigh(covariance)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


def _frechet(
    mean_x: FloatArray, root_x: FloatArray, mean_y: FloatArray, root_y: FloatArray
) -> float:
    """Fréchet distance from factors with ``root.T @ root`` equal to the covariance."""
    # tr (S_x^1/2 S_y S_x^1/2)^1/2 is the nuclear norm of R_x R_y'. Singular values of the roots are
    # never squared, so that near-singular features lose no digits, and never turn complex as the
    # square root of a non-symmetric product does.
    overlap = linalg.svdvals(root_x @ root_y.T).sum()
    spread = np.square(root_x).sum() + np.square(root_y).sum() - 2.0 * overlap
    return float(np.square(mean_x - mean_y).sum() + max(spread, 0.0))


def frechet_distance(features_x: ArrayLike, features_y: ArrayLike) -> float:
    r"""Squared Fréchet distance of Gaussians fitted to two sets of features.

    With Inception features it is the FID (Heusel et al. 2017, arXiv:1706.08500, eq. 6); any other
    features give a distance of their own scale, comparable only within one feature extractor. It is
    biased upwards for few samples: compare equal sample sizes.

    :param features_x: Features of shape ``(num_x,) + event_shape``.
    :param features_y: Features of shape ``(num_y,) + event_shape``.
    :raises ValueError: If the features are malformed.

    >>> round(frechet_distance([[0.0], [2.0]], [[3.0], [5.0]]), 12)
    9.0
    """
    flat_x, flat_y = as_sample_pair(features_x, features_y, "features_x", "features_y")
    means, roots = [], []
    for flat in (flat_x, flat_y):
        means.append(flat.mean(0))
        centred = (flat - means[-1]) / np.sqrt(len(flat) - 1)
        # The triangular factor of the data is a root of the covariance, which is never formed.
        roots.append(linalg.qr(centred, mode="r", check_finite=False)[0][: flat.shape[1]])
    return _frechet(means[0], roots[0], means[1], roots[1])


def c2st(
    x: ArrayLike,
    y: ArrayLike,
    seed: int = 1,
    num_folds: int = 5,
    z_score: bool = True,
    hidden_layer_sizes: tuple[int, ...] | None = None,
) -> float:
    """Classifier two-sample test: cross-validated accuracy of telling ``x`` from ``y``.

    0.5 is indistinguishable, 1 is separable (Lopez-Paz and Oquab 2017, arXiv:1610.06545). The
    classifier and the protocol are those of the simulation-based inference benchmark (Lueckmann et
    al. 2021, arXiv:2101.04653): a ReLU network with two hidden layers of ten units per dimension,
    trained by Adam, on data standardised by the first, reference sample.

    :param x: Reference samples of shape ``(num_samples,) + event_shape``.
    :param y: Samples of the same shape.
    :param seed: Seed of the network and of the folds.
    :param num_folds: Number of folds of the cross-validation, at least 2.
    :param z_score: Whether to standardise by mean and standard deviation of ``x``.
    :param hidden_layer_sizes: Another network; None is that of the benchmark.
    :return: Mean accuracy over the folds.
    :raises ValueError: If the samples are malformed or differ in number, or there are fewer samples
        than folds.
    :raises ImportError: If scikit-learn is missing.
    """
    flat_x, flat_y = as_sample_pair(x, y)
    if len(flat_x) != len(flat_y):
        raise ValueError(
            "`x` and `y` must hold equally many samples, or 0.5 is not chance level, got "
            f"{len(flat_x)} and {len(flat_y)}; subsample the larger one."
        )
    folds = as_count(num_folds, "num_folds", 2)
    if len(flat_x) < folds:
        raise ValueError(
            f"`num_folds` must be at most the number of samples {len(flat_x)}, got {folds}."
        )
    model_selection = import_extra("sklearn.model_selection", "c2st")
    neural_network = import_extra("sklearn.neural_network", "c2st")

    if z_score:
        mean, std = flat_x.mean(0), flat_x.std(0)
        std = np.where(std > 0, std, 1.0)  # a constant feature is left as it is
        flat_x, flat_y = (flat_x - mean) / std, (flat_y - mean) / std
    width = 10 * flat_x.shape[1]
    classifier = neural_network.MLPClassifier(
        activation="relu",
        hidden_layer_sizes=(width, width) if hidden_layer_sizes is None else hidden_layer_sizes,
        max_iter=10_000,
        solver="adam",
        random_state=seed,
    )
    # In single precision, as the benchmark does: two thirds of the time.
    data = np.concatenate([flat_x, flat_y]).astype(np.float32)
    labels = np.repeat([0, 1], [len(flat_x), len(flat_y)])
    splits = model_selection.KFold(n_splits=folds, shuffle=True, random_state=seed)
    scores = model_selection.cross_val_score(
        classifier, data, labels, cv=splits, scoring="accuracy"
    )
    return float(np.mean(scores))


class PrecisionRecall(NamedTuple):
    """Share of generated samples inside the real manifold, and the reverse; both in [0, 1]."""

    precision: float
    recall: float


def precision_recall(real: ArrayLike, generated: ArrayLike, k: int = 3) -> PrecisionRecall:
    """Precision and recall of samples by nearest neighbours.

    The manifold of a set is the union of balls around its points that reach to their ``k``-th
    neighbour. Precision is the share of generated samples inside the real manifold (quality),
    recall that of real samples inside the generated one (coverage) (Kynkäänniemi et al. 2019,
    arXiv:1904.06991, eqs. 1 and 2). Both depend on sample size: compare equal sizes.

    :param real: Samples or features of shape ``(num_real,) + event_shape``.
    :param generated: Samples or features of shape ``(num_generated,) + event_shape``.
    :param k: Which neighbour sets the radius; smaller than both numbers of samples.
    :raises ValueError: If the samples are malformed or too few for ``k``.
    :raises ImportError: If scikit-learn is missing.

    >>> precision_recall([[0.0], [1.0], [2.0]], [[0.5], [1.5], [9.0]], k=1).recall
    1.0
    """
    flat_real, flat_generated = as_sample_pair(real, generated, "real", "generated")
    neighbour = as_count(k, "k")
    for flat, name in ((flat_real, "real"), (flat_generated, "generated")):
        if len(flat) <= neighbour:
            raise ValueError(
                f"`{name}` must hold more than k={neighbour} samples, got {len(flat)}."
            )
    return PrecisionRecall(
        precision=_share_inside(flat_generated, flat_real, neighbour),
        recall=_share_inside(flat_real, flat_generated, neighbour),
    )


def _share_inside(samples: FloatArray, manifold: FloatArray, k: int) -> float:
    neighbors = import_extra("sklearn.neighbors", "precision_recall")
    # scikit-learn forms the same matrix product without a centre.
    centre = manifold.mean(0)
    samples, manifold = samples - centre, manifold - centre
    # Without an argument kneighbors leaves each point out of its own neighbours.
    radii = neighbors.NearestNeighbors(n_neighbors=k).fit(manifold).kneighbors()[0][:, -1]
    squared_radii = np.square(radii)
    inside = sum(
        int((squared <= squared_radii).any(axis=1).sum())
        for squared in _squared_distances(samples, manifold)
    )
    return inside / len(samples)
