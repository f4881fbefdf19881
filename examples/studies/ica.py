# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

r"""EM and spread EM for independent component analysis with Laplace sources.

The model is :math:`z_i \sim` Laplace of unit variance, :math:`x = A z + g \epsilon`. As the output
noise :math:`g` vanishes the posterior becomes a point, and EM stops wherever it starts; with spread
noise, :math:`y = x + s \eta`, it does not (Zhang et al. 2020, arXiv:1811.08968, deterministic ICA).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg, special
from scipy.stats import qmc

from spread_core.validation import FloatArray, as_finite, as_positive

_RATE = np.sqrt(2.0)  # of a Laplace density of unit variance
_CHUNK = 2**16  # elements of the largest temporary array: it should stay in the cache


class ICAProblem(NamedTuple):
    """Data and the mixing matrix that made them."""

    data: FloatArray
    mixing: FloatArray


def laplace_ica(
    rng: np.random.Generator,
    dim: int,
    num_sources: int,
    num_data: int,
    output_noise: float = 0.0,
) -> ICAProblem:
    r"""Draw :math:`A_{ij} \sim U(-1, 1)` and data :math:`x = A z + g \epsilon` of Laplace sources.

    :param rng: Source of randomness.
    :param dim: Number of observed dimensions.
    :param num_sources: Number of sources.
    :param num_data: Number of data.
    :param output_noise: Standard deviation :math:`g` of the output noise.
    :return: Data of shape ``(num_data, dim)`` and mixing matrix of shape ``(dim, num_sources)``.

    >>> laplace_ica(np.random.default_rng(0), 4, 2, 100, 0.05).data.shape
    (100, 4)
    """
    mixing = rng.uniform(-1.0, 1.0, (dim, num_sources))
    sources = rng.laplace(scale=1.0 / _RATE, size=(num_data, num_sources))
    noise = output_noise * rng.standard_normal((num_data, dim))
    return ICAProblem(sources @ mixing.T + noise, mixing)


class SourceMoments(NamedTuple):
    """Posterior moments of the sources and the evidence."""

    mean: FloatArray
    second: FloatArray
    log_evidence: FloatArray


def laplace_source_moments(
    data: ArrayLike, mixing: ArrayLike, scale: float, num_points: int = 128, seed: int = 0
) -> SourceMoments:
    r"""Moments of :math:`p(z | y)` for :math:`y \sim N(A z, s^2 I)` and unit-variance Laplace z.

    Importance sampling with quasi-random points. The likelihood is Gaussian in z, of covariance
    :math:`C = s^2 (A^\top A)^{-1}`, and the posterior is that Gaussian moved by
    :math:`-\sqrt2\, C\, \mathrm{sign}(z)` inside each orthant. Half of the points come from the
    Gaussian moved by :math:`-\sqrt2\, C t`, where :math:`t \approx E\, \mathrm{sign}(z)`: their
    weights are bounded, since :math:`|t_i| \le 1`, and nearly equal where C is narrow. The other
    half come from the posterior under a standard normal prior, for directions in which C is wide.
    Each is weighted by the mixture of both (balance heuristic; Veach and Guibas 1995).

    :param data: Array of shape ``(num_data, dim)``.
    :param mixing: Matrix :math:`A` of full column rank, shape ``(dim, num_sources)``.
    :param scale: Standard deviation :math:`s` of the output, spread noise included.
    :param num_points: Number of points, a power of two.
    :param seed: Seed of the scrambling of the points.
    :return: Means of shape ``(num_data, num_sources)``, the average over data of
        :math:`E[z z^\top | y]`, and the log evidence per datum in nats.
    :raises ValueError: If ``mixing`` has no full column rank or ``scale`` is not positive.

    >>> moments = laplace_source_moments([[2.0, 0.0]], np.eye(2), 0.1)
    >>> moments.mean.round(2) + 0.0
    array([[1.99, 0.  ]])
    """
    values, weight = as_finite(data, "data"), as_finite(mixing, "mixing")
    variance = float(np.square(as_positive(scale, "scale")))
    dim, num_sources = weight.shape
    try:
        root = linalg.cholesky(weight.T @ weight, lower=True)
    except linalg.LinAlgError as error:
        raise ValueError("`mixing` must have full column rank.") from error
    projected = linalg.cho_solve((root, True), weight.T @ values.T).T
    inverse = linalg.solve_triangular(root, np.eye(num_sources), lower=True)
    covariance = variance * inverse.T @ inverse

    # Any t is correct; damped by the slope, t = E sign(z) is nearly reached also for a wide C.
    width = np.sqrt(2.0 * np.diag(covariance))
    tilt = np.zeros_like(projected)
    for _ in range(6):
        ratio = (projected - _RATE * tilt @ covariance) / width
        slope = _RATE * np.abs(covariance).sum(0) * 2.0 / np.sqrt(np.pi) / width
        tilt += (special.erf(ratio) - tilt) / (1.0 + slope * np.exp(-np.square(ratio)))
    tilt = np.clip(tilt, -1.0, 1.0)
    # Both proposals are the likelihood times a Gaussian site, so only sites enter the weights.
    narrow = projected - _RATE * tilt @ covariance
    log_narrow = -_RATE * (tilt * projected).sum(-1) + ((tilt @ covariance) * tilt).sum(-1)
    joint = linalg.cholesky(covariance + np.eye(num_sources), lower=True)
    gain = linalg.cho_solve((joint, True), covariance)
    wide = projected - projected @ gain
    whitened = linalg.solve_triangular(joint, projected.T, lower=True).T
    log_wide = -0.5 * np.square(whitened).sum(-1) - np.log(np.diag(joint)).sum()
    half = max(1, num_points // 2)
    base = _normal_points(num_sources, 2 * half, seed)
    gap = base[:half] @ (np.sqrt(variance) * inverse), base[half:] @ linalg.cholesky(gain)
    points = np.concatenate(gap)

    mean, second = np.empty_like(projected), np.zeros_like(covariance)
    log_prior = np.empty(len(projected))
    size = max(1, _CHUNK // len(points))
    for start in range(0, len(values), size):
        rows = slice(start, start + size)
        log_w = np.zeros((len(narrow[rows]), len(points)))
        log_ratio = np.broadcast_to((log_narrow - log_wide)[rows, None], log_w.shape).copy()
        for i in range(num_sources):
            both = [m[rows, i, None] + u[:, i] for m, u in zip((narrow, wide), gap, strict=True)]
            z = np.concatenate(both, -1)
            tilted = tilt[rows, i, None] * z
            log_w += tilted - np.abs(z)
            log_ratio += _RATE * tilted - 0.5 * z * z
        # Balance heuristic: the mixture of both proposals in the denominator.
        log_w = _RATE * log_w + np.log(2.0) - np.logaddexp(0.0, log_ratio)
        peak = log_w.max(-1, keepdims=True)
        w = np.exp(log_w - peak)
        total = w.sum(-1, keepdims=True)
        log_prior[rows] = (peak + np.log(total / len(points)))[:, 0]
        w /= total
        share = w[:, half:].sum(-1, keepdims=True)
        centre = [narrow[rows], wide[rows]]
        shift = [w[:, :half] @ gap[0], w[:, half:] @ gap[1]]
        mean[rows] = (1 - share) * centre[0] + share * centre[1] + shift[0] + shift[1]
        for m, s, r in zip(centre, shift, [1 - share, share], strict=True):
            cross = m.T @ s
            second += (m * r).T @ m + cross + cross.T
        second += (points * w.sum(0)[:, None]).T @ points

    log_evidence = log_prior + log_narrow - 0.5 * num_sources * np.log(2.0)
    outside = np.square(values - projected @ weight.T).sum(-1)
    log_evidence -= 0.5 * outside / variance + np.log(np.diag(root)).sum()
    log_evidence -= 0.5 * (dim - num_sources) * np.log(2 * np.pi * variance)
    return SourceMoments(mean, second / len(values), log_evidence)


def _normal_points(dim: int, num_points: int, seed: int) -> FloatArray:
    uniform = qmc.Sobol(dim, seed=seed).random(num_points)
    return special.ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))


def spread_scale(mixing: ArrayLike) -> float:
    r"""Spread noise :math:`\max(0.001,\, 2.5 \sqrt{\mathrm{mean}(A A^\top)})` of the paper.

    The mean is over all entries of the matrix, so that it vanishes as the columns of A cancel.

    :param mixing: Matrix :math:`A` of shape ``(dim, num_sources)``.

    >>> float(spread_scale([[1.0], [1.0]]))
    2.5
    """
    weight = as_finite(mixing, "mixing")
    return max(1e-3, 2.5 * float(np.sqrt(np.mean(weight @ weight.T))))


def laplace_ica_em(
    data: ArrayLike,
    start: ArrayLike,
    output_noise: float,
    spread: float | Callable[[FloatArray], float] | None = None,
    num_steps: int = 200,
    num_points: int = 64,
    rng: np.random.Generator | None = None,
) -> FloatArray:
    r"""Learn the mixing matrix by EM, or by spread EM if ``spread`` is given.

    A step is :math:`A \leftarrow E[y z^\top]\, E[z z^\top]^{-1}` under the posterior at the present
    A. EM has y = x and its posterior has the width of the output noise g: as g vanishes z is a
    linear function of x and the step returns A itself. Spread EM draws :math:`y = x + s \eta`
    afresh at every step and has :math:`\sqrt{s^2 + g^2}` instead of g.

    :param data: Clean data x, shape ``(num_data, dim)``.
    :param start: First A, shape ``(dim, num_sources)``.
    :param output_noise: Standard deviation g of the model's output.
    :param spread: Scale s of the spread noise, or a function from A to it such as
        :func:`spread_scale`; None is plain EM.
    :param num_steps: Number of steps.
    :param num_points: Points of :func:`laplace_source_moments`.
    :param rng: Source of the spread noise; it must be given if ``spread`` is.
    :return: A before the first and after every step, shape ``(num_steps + 1, dim, num_sources)``.
    :raises ValueError: If ``rng`` is missing, and as :func:`laplace_source_moments`.

    >>> x, mixing = laplace_ica(np.random.default_rng(0), 3, 1, 500, 0.5)
    >>> laplace_ica_em(x, np.ones((3, 1)), 0.5, num_steps=3).shape
    (4, 3, 1)
    """
    x, mixing = as_finite(data, "data"), as_finite(start, "start")
    if spread is not None and rng is None:
        raise ValueError("`rng` must be given: spread EM draws noise at every step.")
    path = [mixing]
    for _ in range(num_steps):
        y, scale, seed = x, output_noise, 0
        if spread is not None and rng is not None:
            width = spread(mixing) if callable(spread) else spread
            y = x + width * rng.standard_normal(x.shape)
            scale, seed = float(np.hypot(width, output_noise)), int(rng.integers(2**31))
        moments = laplace_source_moments(y, mixing, scale, num_points, seed)
        mixing = np.asarray(linalg.solve(moments.second, moments.mean.T @ y / len(y)).T)
        path.append(mixing)
    return np.stack(path)
