# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

r"""Linear deterministic decoders: delta-PCA and the exact posterior and ELBO.

The model is :math:`z \sim N(0, I)`, :math:`x = A z + b` without output noise, spread by
:math:`y = x + s \epsilon`. Everything is Gaussian, so every term of the bound is known.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from spread_core.validation import (
    FloatArray,
    as_count,
    as_covariance,
    as_finite,
    as_positive,
)


def _spectrum(covariance: ArrayLike, num_components: int) -> tuple[FloatArray, FloatArray, int]:
    matrix = as_covariance(covariance, "covariance")
    rank = as_count(num_components, "num_components")
    if rank > matrix.shape[0]:
        raise ValueError(
            f"`num_components` must be at most the dimension {matrix.shape[0]}, got {rank}."
        )
    values, vectors = linalg.eigh(matrix)
    if values[0] < -1e-10 * max(abs(values[-1]), abs(values[0])):
        raise ValueError("`covariance` must be positive semi-definite.")
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1], rank


def delta_pca_optimum(covariance: ArrayLike, num_components: int) -> FloatArray:
    r"""Optimal :math:`A A^\top` of a linear deterministic decoder under the spread KL.

    Data with clean covariance :math:`S = U L U^\top`, spread on both sides by Gaussian noise of any
    scale, give :math:`A A^\top = U_k L_k U_k^\top`: the noise cancels, unlike in probabilistic PCA
    (Zhang et al. 2020, arXiv:1811.08968, section 4).

    :param covariance: Clean covariance of the data, shape ``(dim, dim)``.
    :param num_components: Number :math:`k` of latents.
    :return: Matrix of shape ``(dim, dim)`` and rank at most ``num_components``.
    :raises ValueError: If ``covariance`` is not a covariance or ``num_components`` out of range.

    >>> delta_pca_optimum(np.diag([3.0, 1.0]), 1)
    array([[3., 0.],
           [0., 0.]])
    """
    values, vectors, rank = _spectrum(covariance, num_components)
    leading = vectors[:, :rank]
    return (leading * values[:rank]) @ leading.T


def delta_pca_one_sided_optimum(
    covariance: ArrayLike, num_components: int, scale: float
) -> FloatArray:
    r"""
    The optimum with noise on the model's side alone: :math:`U_k (L_k - s^2)_+ U_k^\top`, biased.

    This is probabilistic PCA with a fixed output variance (Tipping and Bishop 1999, eq. 7).

    :param covariance: Clean covariance of the data, shape ``(dim, dim)``.
    :param num_components: Number :math:`k` of latents.
    :param scale: Standard deviation of the one-sided noise.
    :return: Matrix of shape ``(dim, dim)``.
    :raises ValueError: As :func:`delta_pca_optimum`, and if ``scale`` is not positive.

    >>> delta_pca_one_sided_optimum(np.diag([3.0, 1.0]), 1, scale=1.0)
    array([[2., 0.],
           [0., 0.]])
    """
    values, vectors, rank = _spectrum(covariance, num_components)
    leading = vectors[:, :rank]
    shrunk = np.maximum(values[:rank] - np.square(as_positive(scale, "scale")), 0.0)
    return (leading * shrunk) @ leading.T


def delta_pca_residual(covariance: ArrayLike, num_components: int, scale: float) -> float:
    r"""Spread KL that remains at the delta-PCA optimum, in nats.

    .. math:: \tfrac12 \sum_{i > k} \left[l_i / s^2 - \ln(1 + l_i / s^2)\right]

    :param covariance: Clean covariance of the data, shape ``(dim, dim)``.
    :param num_components: Number :math:`k` of latents.
    :param scale: Standard deviation of the noise.
    :raises ValueError: As :func:`delta_pca_one_sided_optimum`.

    >>> delta_pca_residual(np.diag([3.0, 0.0]), 1, scale=0.5)
    0.0
    """
    values, _, rank = _spectrum(covariance, num_components)
    ratio = values[rank:] / np.square(as_positive(scale, "scale"))
    return float(0.5 * (ratio - np.log1p(ratio)).sum())


def _decoder(
    y: ArrayLike, loading: ArrayLike, scale: float, offset: ArrayLike | None, name: str = "y"
) -> tuple[FloatArray, FloatArray, float, FloatArray]:
    """Return data without offset, loading, noise variance and offset, with their shapes checked."""
    weight = as_finite(loading, "loading")
    if weight.ndim != 2:
        raise ValueError(f"`loading` must have shape (dim, num_latents), got {weight.shape}.")
    dim = weight.shape[0]
    shift = np.zeros(dim) if offset is None else as_finite(offset, "offset")
    if shift.shape != (dim,):
        raise ValueError(f"`offset` must have shape {(dim,)}, got {shift.shape}.")
    data = as_finite(y, name)
    if data.ndim == 0 or data.shape[-1] != dim:
        raise ValueError(f"`{name}` must have shape (..., {dim}), got {data.shape}.")
    return data - shift, weight, float(np.square(as_positive(scale, "scale"))), shift


class GaussianPosterior(NamedTuple):
    """Gaussian posterior of the latents of a linear decoder."""

    mean: FloatArray
    covariance: FloatArray


def linear_posterior(
    y: ArrayLike, loading: ArrayLike, scale: float, offset: ArrayLike | None = None
) -> GaussianPosterior:
    r"""Exact posterior :math:`p(z | y)` of the spread linear decoder.

    :math:`C = (I + A^\top A / s^2)^{-1}` and :math:`m = C A^\top (y - b) / s^2`.

    :param y: Spread data of shape ``(..., dim)``.
    :param loading: Matrix :math:`A` of shape ``(dim, num_latents)``.
    :param scale: Standard deviation of the noise.
    :param offset: Vector :math:`b` of shape ``(dim,)``; None is zero.
    :return: Mean of shape ``(..., num_latents)`` and the shared covariance.
    :raises ValueError: If ``scale`` is not positive or shapes do not fit.

    >>> mean, covariance = linear_posterior([2.0], [[1.0]], 1.0)
    >>> mean, covariance
    (array([1.]), array([[0.5]]))
    """
    data, weight, variance, _ = _decoder(y, loading, scale, offset)
    # The singular basis of A keeps both directions exact when |A| and s differ by many orders.
    left, singular, right = linalg.svd(weight, full_matrices=True)
    num_latents = weight.shape[1]
    padded = np.zeros(num_latents)
    padded[: len(singular)] = singular
    covariance = (right.T * (variance / (variance + padded**2))) @ right
    gain = (right.T[:, : len(singular)] * (singular / (variance + singular**2))) @ left[
        :, : len(singular)
    ].T
    return GaussianPosterior(data @ gain.T, covariance)


def linear_marginal_log_prob(
    y: ArrayLike, loading: ArrayLike, scale: float, offset: ArrayLike | None = None
) -> FloatArray:
    r"""Exact evidence :math:`\ln N(y; b, A A^\top + s^2 I)` of the spread linear decoder, in nats.

    :param y: Spread data of shape ``(..., dim)``.
    :param loading: Matrix :math:`A` of shape ``(dim, num_latents)``.
    :param scale: Standard deviation of the noise.
    :param offset: Vector :math:`b` of shape ``(dim,)``; None is zero.
    :return: Array of shape ``(...)``.
    :raises ValueError: If ``scale`` is not positive or shapes do not fit.

    >>> round(float(linear_marginal_log_prob([2.0], [[1.0]], 1.0)), 8)
    -2.26551212
    """
    data, weight, variance, _ = _decoder(y, loading, scale, offset)
    basis, singular, _ = linalg.svd(weight, full_matrices=False)
    inside = data @ basis
    outside = data - inside @ basis.T
    explained = variance + singular**2
    quadratic = np.square(outside).sum(-1) / variance + (np.square(inside) / explained).sum(-1)
    dim = weight.shape[0]
    log_det = (dim - len(singular)) * np.log(variance) + np.log(explained).sum()
    return -0.5 * (quadratic + log_det + dim * np.log(2 * np.pi))


def _standard_normal_kl_constant(covariance: FloatArray) -> float:
    """Return tr C - K - ln |C|: twice the part of KL[N(m, C) || N(0, I)] that is free of m."""
    try:
        root = linalg.cholesky(covariance, lower=True)
    except linalg.LinAlgError as error:
        raise ValueError("`guide_covariance` must be positive definite.") from error
    log_det = 2.0 * np.log(np.diag(root)).sum()
    return float(np.trace(covariance) - len(covariance) - log_det)


def linear_elbo(
    y: ArrayLike,
    loading: ArrayLike,
    scale: float,
    guide_mean: ArrayLike,
    guide_covariance: ArrayLike,
    offset: ArrayLike | None = None,
) -> FloatArray:
    r"""ELBO of the spread linear decoder under any Gaussian guide, in nats.

    .. math::

        -\tfrac D2 \ln 2 \pi s^2 - \frac{|y - b - A m|^2 + \mathrm{tr}(A C A^\top)}{2 s^2}
        - KL[N(m, C) \| N(0, I)]

    At the exact posterior it equals :func:`linear_marginal_log_prob`.

    :param y: Spread data of shape ``(..., dim)``.
    :param loading: Matrix :math:`A` of shape ``(dim, num_latents)``.
    :param scale: Standard deviation of the noise.
    :param guide_mean: Mean :math:`m` per datum, shape ``(..., num_latents)``.
    :param guide_covariance: Covariance :math:`C` of shape ``(num_latents, num_latents)``.
    :param offset: Vector :math:`b` of shape ``(dim,)``; None is zero.
    :return: Array of shape ``(...)``.
    :raises ValueError: If shapes do not fit or ``guide_covariance`` is not positive definite.

    >>> round(float(linear_elbo([2.0], [[1.0]], 1.0, [1.0], [[0.5]])), 8)
    -2.26551212
    """
    data, weight, variance, _ = _decoder(y, loading, scale, offset)
    covariance, mean = _guide(weight, guide_covariance), as_finite(guide_mean, "guide_mean")
    dim, num_latents = weight.shape
    if mean.ndim == 0 or mean.shape[-1] != num_latents:
        raise ValueError(f"`guide_mean` must have shape (..., {num_latents}), got {mean.shape}.")
    error = np.square(data - mean @ weight.T).sum(-1)
    error = error + np.trace(weight @ covariance @ weight.T)
    kl = 0.5 * (np.square(mean).sum(-1) + _standard_normal_kl_constant(covariance))
    return -0.5 * dim * np.log(2 * np.pi * variance) - error / (2 * variance) - kl


def expected_linear_elbo(
    x: ArrayLike,
    loading: ArrayLike,
    scale: float,
    guide_loading: ArrayLike,
    guide_covariance: ArrayLike,
    offset: ArrayLike | None = None,
    guide_offset: ArrayLike | None = None,
) -> FloatArray:
    r"""Expectation of :func:`linear_elbo` over fresh noise, for a linear guide, in nats.

    The guide is :math:`q(z|y) = N(W y + c, C)`; the expectation is over
    :math:`y \sim N(x, s^2 I)`. This is what a spread ELBO estimates from the clean ``x``. Scoring
    ``x`` instead of ``y`` would drop the term :math:`\mathrm{tr}(I - A W)` from its gradient.

    :param x: Clean data of shape ``(..., dim)``.
    :param loading: Matrix :math:`A` of shape ``(dim, num_latents)``.
    :param scale: Standard deviation of the noise.
    :param guide_loading: Matrix :math:`W` of shape ``(num_latents, dim)``.
    :param guide_covariance: Covariance :math:`C` of shape ``(num_latents, num_latents)``.
    :param offset: Vector :math:`b` of shape ``(dim,)``; None is zero.
    :param guide_offset: Vector :math:`c` of shape ``(num_latents,)``; None is zero.
    :return: Array of shape ``(...)``.
    :raises ValueError: If shapes do not fit or ``guide_covariance`` is not positive definite.

    >>> round(float(expected_linear_elbo([0.0], [[0.0]], 1.0, [[0.0]], [[1.0]])), 6)
    -1.418939
    """
    data, weight, variance, shift = _decoder(x, loading, scale, offset, "x")
    covariance, gain = _guide(weight, guide_covariance), as_finite(guide_loading, "guide_loading")
    dim, num_latents = weight.shape
    if gain.shape != (num_latents, dim):
        raise ValueError(f"`guide_loading` must have shape {(num_latents, dim)}, got {gain.shape}.")
    bias = (
        np.zeros(num_latents) if guide_offset is None else as_finite(guide_offset, "guide_offset")
    )
    # Mean and noise part of the guide's mean, then of the residual y - b - A m.
    centre = (data + shift) @ gain.T + bias
    error = np.square(data - centre @ weight.T).sum(-1)
    error = error + variance * np.square(np.eye(dim) - weight @ gain).sum()
    error = error + np.trace(weight @ covariance @ weight.T)
    norm = np.square(centre).sum(-1) + variance * np.square(gain).sum()
    kl = 0.5 * (norm + _standard_normal_kl_constant(covariance))
    return -0.5 * dim * np.log(2 * np.pi * variance) - error / (2 * variance) - kl


def _guide(weight: FloatArray, guide_covariance: ArrayLike) -> FloatArray:
    covariance = as_covariance(guide_covariance, "guide_covariance")
    if len(covariance) != weight.shape[1]:
        raise ValueError(
            f"`guide_covariance` must have shape {(weight.shape[1],) * 2}, got {covariance.shape}."
        )
    return covariance


def perfect_reconstruction_log_likelihood(dim: int, scale: float) -> float:
    r"""Expected log-likelihood of spread data at a perfect reconstruction, in nats.

    :math:`E \ln N(y; x, s^2 I) = -\frac D2 \ln 2 \pi s^2 - \frac D2`: the noise itself is never
    reconstructed and costs half a nat per dimension.

    :param dim: Number :math:`D` of dimensions.
    :param scale: Standard deviation of the noise.
    :raises ValueError: If ``dim`` is not a positive integer or ``scale`` not positive.

    >>> round(perfect_reconstruction_log_likelihood(2, 1.0), 6)
    -2.837877
    """
    size, width = as_count(dim, "dim"), float(as_positive(scale, "scale"))
    return -0.5 * size * (float(np.log(2 * np.pi * width**2)) + 1.0)
