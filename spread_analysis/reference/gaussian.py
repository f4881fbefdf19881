# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Spread divergences of Gaussians and of finite sets of atoms under Gaussian noise, in nats."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate, linalg, special
from scipy.spatial.distance import cdist

from spread_core.validation import (
    FloatArray,
    as_covariance,
    as_finite,
    as_positive,
    as_samples,
    as_weights,
)


def _moments(
    mean_p: ArrayLike | None,
    covariance_p: ArrayLike,
    mean_q: ArrayLike | None,
    covariance_q: ArrayLike,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    cov_p, cov_q = (
        as_covariance(covariance_p, "covariance_p"),
        as_covariance(covariance_q, "covariance_q"),
    )
    if cov_p.shape != cov_q.shape:
        raise ValueError(
            "`covariance_p` and `covariance_q` must have the same shape, "
            f"got {cov_p.shape} and {cov_q.shape}."
        )
    dim = cov_p.shape[0]
    means = []
    for mean, name in ((mean_p, "mean_p"), (mean_q, "mean_q")):
        vector = np.zeros(dim) if mean is None else as_finite(mean, name)
        if vector.shape != (dim,):
            raise ValueError(f"`{name}` must have shape {(dim,)}, got {vector.shape}.")
        means.append(vector)
    return means[0], cov_p, means[1], cov_q


def _cholesky(covariance: FloatArray, name: str) -> FloatArray:
    try:
        return linalg.cholesky(covariance, lower=True)
    except linalg.LinAlgError as error:
        raise ValueError(
            f"`{name}` must be positive definite; a singular clean covariance needs noise, "
            "see `spread_gaussian_kl`."
        ) from error


def gaussian_kl(
    mean_p: ArrayLike | None,
    covariance_p: ArrayLike,
    mean_q: ArrayLike | None,
    covariance_q: ArrayLike,
) -> float:
    r"""KL divergence of :math:`N(m_p, S_p)` from :math:`N(m_q, S_q)`, in nats.

    .. math::

        \tfrac12 \left[\mathrm{tr}(S_q^{-1} S_p) - D + \ln\frac{|S_q|}{|S_p|}
        + (m_p - m_q)^\top S_q^{-1} (m_p - m_q)\right]

    :param mean_p: Mean of shape ``(dim,)``; None is zero.
    :param covariance_p: Positive definite matrix of shape ``(dim, dim)``.
    :param mean_q: Mean of shape ``(dim,)``; None is zero.
    :param covariance_q: Positive definite matrix of shape ``(dim, dim)``.
    :raises ValueError: If shapes differ or a covariance is not positive definite.

    >>> round(gaussian_kl([0.0], [[1.0]], [1.0], [[4.0]]), 10)
    0.4431471806
    """
    m_p, cov_p, m_q, cov_q = _moments(mean_p, covariance_p, mean_q, covariance_q)
    root_p, root_q = _cholesky(cov_p, "covariance_p"), _cholesky(cov_q, "covariance_q")
    whitened = linalg.solve_triangular(root_q, root_p, lower=True)
    shift = linalg.solve_triangular(root_q, m_p - m_q, lower=True)
    # log |S_q| - log |S_p| is minus the log-determinant of the whitened root, squared.
    log_det = -2.0 * np.log(np.diag(whitened)).sum()
    value = np.square(whitened).sum() - len(m_p) + log_det + np.square(shift).sum()
    return float(max(value, 0.0) / 2)


def spread_gaussian_kl(
    covariance_p: ArrayLike,
    covariance_q: ArrayLike,
    scale: float,
    mean_p: ArrayLike | None = None,
    mean_q: ArrayLike | None = None,
) -> float:
    r"""Spread KL of two Gaussians, singular ones included: the KL with :math:`S + s^2 I`, in nats.

    The clean covariances may have any rank, so the supports may differ in dimension: a point has
    covariance zero, a line has rank one.

    :param covariance_p: Clean covariance of the data, shape ``(dim, dim)``, positive semi-definite.
    :param covariance_q: Clean covariance of the model, shape ``(dim, dim)``.
    :param scale: Standard deviation :math:`s > 0` of the Gaussian noise.
    :param mean_p: Mean of shape ``(dim,)``; None is zero.
    :param mean_q: Mean of shape ``(dim,)``; None is zero.
    :raises ValueError: If ``scale`` is not positive, shapes differ, or a spread covariance is not
        positive definite.

    A line of variance 1 and a line orthogonal to it, noise variance 1/4:

    >>> round(spread_gaussian_kl(np.diag([1.0, 0.0]), np.diag([0.0, 1.0]), 0.5), 6)
    1.6
    """
    variance = float(np.square(as_positive(scale, "scale")))
    m_p, cov_p, m_q, cov_q = _moments(mean_p, covariance_p, mean_q, covariance_q)
    noise = variance * np.eye(len(m_p))
    return gaussian_kl(m_p, cov_p + noise, m_q, cov_q + noise)


def gaussian_fisher_divergence(
    mean_p: ArrayLike | None,
    covariance_p: ArrayLike,
    mean_q: ArrayLike | None,
    covariance_q: ArrayLike,
) -> float:
    r"""Fisher divergence :math:`E_p |\nabla \ln p - \nabla \ln q|^2` of two Gaussians.

    :param mean_p: Mean of shape ``(dim,)``; None is zero.
    :param covariance_p: Positive definite matrix of shape ``(dim, dim)``.
    :param mean_q: Mean of shape ``(dim,)``; None is zero.
    :param covariance_q: Positive definite matrix of shape ``(dim, dim)``.
    :raises ValueError: As :func:`gaussian_kl`.

    >>> gaussian_fisher_divergence([0.0], [[1.0]], [3.0], [[1.0]])
    9.0
    """
    m_p, cov_p, m_q, cov_q = _moments(mean_p, covariance_p, mean_q, covariance_q)
    factor_p = (_cholesky(cov_p, "covariance_p"), True)
    factor_q = (_cholesky(cov_q, "covariance_q"), True)
    eye = np.eye(len(m_p))
    difference = linalg.cho_solve(factor_q, eye) - linalg.cho_solve(factor_p, eye)
    shift = linalg.cho_solve(factor_q, m_p - m_q)
    return float(np.trace(difference @ cov_p @ difference) + shift @ shift)


def spread_gaussian_kl_derivative(
    covariance_p: ArrayLike,
    covariance_q: ArrayLike,
    scale: float,
    mean_p: ArrayLike | None = None,
    mean_q: ArrayLike | None = None,
) -> float:
    r"""Derivative of :func:`spread_gaussian_kl` in the noise *variance*, by de Bruijn's identity.

    .. math::

        \frac{d\, KL[\tilde p \| \tilde q]}{d s^2}
        = -\tfrac12 E_{\tilde p} |\nabla \ln \tilde p - \nabla \ln \tilde q|^2 \le 0

    so more noise never increases the spread KL (Lyu 2009, "Interpretation and generalization of
    score matching", theorem 1).

    :param covariance_p: Clean covariance of the data, shape ``(dim, dim)``.
    :param covariance_q: Clean covariance of the model, shape ``(dim, dim)``.
    :param scale: Standard deviation of the noise (the derivative is in its square).
    :param mean_p: Mean of shape ``(dim,)``; None is zero.
    :param mean_q: Mean of shape ``(dim,)``; None is zero.
    :raises ValueError: As :func:`spread_gaussian_kl`.

    >>> spread_gaussian_kl_derivative([[0.0]], [[0.0]], 1.0, mean_q=[2.0])
    -2.0
    """
    variance = float(np.square(as_positive(scale, "scale")))
    m_p, cov_p, m_q, cov_q = _moments(mean_p, covariance_p, mean_q, covariance_q)
    noise = variance * np.eye(len(m_p))
    return -0.5 * gaussian_fisher_divergence(m_p, cov_p + noise, m_q, cov_q + noise)


def mahalanobis_distance(
    difference: ArrayLike, scale: float, factor: ArrayLike | None = None
) -> FloatArray:
    r"""Length of a difference under the noise covariance :math:`s^2 I + F F^\top`.

    It is computed from an ``R x R`` system (Woodbury), never from a ``D x D`` matrix.

    :param difference: Array of shape ``(..., dim)``.
    :param scale: Standard deviation :math:`s > 0` of the isotropic part.
    :param factor: Matrix :math:`F` of shape ``(dim, rank)``; None is no factor.
    :return: Array of shape ``(...)``, the :math:`d` of the table of two deltas.
    :raises ValueError: If ``scale`` is not positive or shapes do not fit.

    >>> float(mahalanobis_distance([3.0, 4.0], scale=1.0))
    5.0
    """
    width = float(as_positive(scale, "scale"))
    z = as_finite(difference, "difference") / width
    if z.ndim == 0:
        raise ValueError("`difference` must have shape (..., dim), got a scalar.")
    if factor is None:
        return np.linalg.norm(z, axis=-1)
    scaled = as_finite(factor, "factor") / width
    if scaled.ndim != 2 or scaled.shape[0] != z.shape[-1]:
        raise ValueError(f"`factor` must have shape ({z.shape[-1]}, rank), got {np.shape(factor)}.")
    # In the singular basis of the factor a component shrinks by 1 / (1 + sigma^2). Subtracting the
    # part in its span first keeps this exact where s^2 - s^2 would cancel.
    basis, singular, _ = linalg.svd(scaled, full_matrices=False)
    inside = z @ basis
    outside = z - inside @ basis.T
    shrunk = np.square(inside) / (1.0 + np.square(singular))
    return np.sqrt(np.square(outside).sum(-1) + shrunk.sum(-1))


def low_rank_spread_kl(
    difference: ArrayLike, scale: float, factor: ArrayLike | None = None
) -> FloatArray:
    r"""Spread KL of two deltas under :math:`N(0, s^2 I + F F^\top)`: half the squared distance.

    It is largest at ``factor=0``: an additive learned covariance needs a constraint.

    :param difference: Difference of the two points, shape ``(..., dim)``.
    :param scale: Standard deviation of the isotropic part.
    :param factor: Matrix of shape ``(dim, rank)``; None is no factor.
    :return: Array of shape ``(...)``, in nats.
    :raises ValueError: As :func:`mahalanobis_distance`.

    >>> round(float(low_rank_spread_kl([2.0, 0.0], 1.0, [[1.0], [0.0]])), 6)
    1.0
    """
    return 0.5 * np.square(mahalanobis_distance(difference, scale, factor))


def spread_l2_distance(
    x: ArrayLike,
    y: ArrayLike,
    scale: float,
    weights_x: ArrayLike | None = None,
    weights_y: ArrayLike | None = None,
) -> float:
    r"""Squared :math:`L_2` distance of two sets of atoms after Gaussian noise.

    .. math::

        \int (\tilde p - \tilde q)^2 = MMD^2 \text{ with kernel } N(x - x'; 0, 2 s^2 I)

    It is the population value for the given atoms (a V-statistic), not an estimate.

    :param x: Atoms of shape ``(num_x,) + event_shape``.
    :param y: Atoms of shape ``(num_y,) + event_shape``.
    :param scale: Standard deviation :math:`s > 0` of the noise.
    :param weights_x: Probabilities of shape ``(num_x,)``; None is uniform.
    :param weights_y: Probabilities of shape ``(num_y,)``; None is uniform.
    :raises ValueError: If ``scale`` is not positive or shapes do not fit.

    >>> spread_l2_distance([[0.0]], [[0.0]], 1.0)
    0.0
    """
    width = float(as_positive(scale, "scale"))
    atoms = [_as_atoms(x, "x"), _as_atoms(y, "y")]
    if atoms[0].shape[1] != atoms[1].shape[1]:
        raise ValueError(
            f"`x` and `y` must have the same event shape, got {np.shape(x)} and {np.shape(y)}."
        )
    signed = np.concatenate(
        [
            as_weights(weights_x, len(atoms[0]), "weights_x"),
            -as_weights(weights_y, len(atoms[1]), "weights_y"),
        ]
    )
    points = np.concatenate(atoms)
    kernel = np.exp(-cdist(points, points, "sqeuclidean") / (4 * width**2))
    log_norm = -0.5 * points.shape[1] * np.log(4 * np.pi * width**2)
    return float(max(signed @ kernel @ signed, 0.0) * np.exp(log_norm))


def _as_atoms(value: ArrayLike, name: str) -> FloatArray:
    array = as_finite(value, name)
    if array.ndim == 1:
        array = array[:, None]
    # One atom is a valid distribution, unlike one sample.
    return array.reshape(1, -1) if array.shape[0] == 1 else as_samples(array, name)


class AtomDivergences(NamedTuple):
    """Divergences of two sets of atoms on the line after Gaussian noise."""

    kl: float
    fisher: float
    l2: float


def spread_atoms_divergences(
    x: ArrayLike,
    y: ArrayLike,
    scale: float,
    weights_x: ArrayLike | None = None,
    weights_y: ArrayLike | None = None,
) -> AtomDivergences:
    r"""Divergences of two sets of atoms on the line after Gaussian noise, by quadrature.

    Returns :math:`KL[\tilde p \| \tilde q]` in nats, the Fisher divergence
    :math:`E_{\tilde p} |\nabla \ln \tilde p - \nabla \ln \tilde q|^2` and
    :math:`\int (\tilde p - \tilde q)^2`, the pieces of de Bruijn's and of the MMD identity.

    :param x: Atoms of the data, shape ``(num_x,)``.
    :param y: Atoms of the model, shape ``(num_y,)``.
    :param scale: Standard deviation :math:`s > 0` of the noise.
    :param weights_x: Probabilities of shape ``(num_x,)``; None is uniform.
    :param weights_y: Probabilities of shape ``(num_y,)``; None is uniform.
    :raises ValueError: If ``scale`` is not positive or an array is not one-dimensional.

    >>> round(spread_atoms_divergences([0.0], [2.0], 1.0).kl, 8)
    2.0
    """
    width = float(as_positive(scale, "scale"))
    sides = []
    for atoms, weights, names in (
        (x, weights_x, ("x", "weights_x")),
        (y, weights_y, ("y", "weights_y")),
    ):
        locations = as_finite(atoms, names[0])
        if locations.ndim != 1 or locations.size == 0:
            raise ValueError(f"`{names[0]}` must have shape (num_atoms,), got {locations.shape}.")
        with np.errstate(divide="ignore"):
            logits = np.log(as_weights(weights, len(locations), names[1]))
        sides.append((locations, logits - 0.5 * np.log(2 * np.pi * width**2)))

    def log_density_and_score(
        point: float, side: tuple[FloatArray, FloatArray]
    ) -> tuple[float, float]:
        locations, logits = side
        terms = logits - 0.5 * np.square((point - locations) / width)
        score = special.softmax(terms) @ (locations - point) / width**2
        return float(special.logsumexp(terms)), float(score)

    def integrand(point: float) -> FloatArray:
        log_p, score_p = log_density_and_score(point, sides[0])
        log_q, score_q = log_density_and_score(point, sides[1])
        p, q = np.exp(log_p), np.exp(log_q)
        return np.array([p * (log_p - log_q), p * (score_p - score_q) ** 2, (p - q) ** 2])

    centres = np.concatenate([sides[0][0], sides[1][0]])
    values, _ = integrate.quad_vec(
        integrand,
        centres.min() - 12 * width,
        centres.max() + 12 * width,
        points=np.unique(centres),
        epsabs=1e-13,
        epsrel=1e-11,
    )
    return AtomDivergences(*(float(value) for value in values))
