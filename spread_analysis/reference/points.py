# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Point models and denoisers: what one atom learns, and Tweedie's formula."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from spread_core.validation import FloatArray, as_finite, as_positive, as_weights


def _kl_slope(ratio: FloatArray, noise: str) -> FloatArray:
    """Derivative of the KL of two deltas in their signed distance, unit scale."""
    if noise == "gaussian":
        return ratio
    if noise == "laplace":
        return -np.sign(ratio) * np.expm1(-np.abs(ratio))
    # d/dr (r coth(r/2) - 2) = (sinh r - r) / (cosh r - 1), an odd function that goes to +-1
    r = np.abs(ratio)
    safe = np.where(r < 1e-2, 1.0, r)
    decay = np.exp(-safe)
    slope = (1 - decay**2 - 2 * safe * decay) / (1 - decay) ** 2
    return np.sign(ratio) * np.where(r < 1e-2, r / 3 - r**3 / 90, slope)


def point_model_optimum(
    data: ArrayLike,
    scale: float,
    noise: str = "gaussian",
    weights: ArrayLike | None = None,
) -> float:
    r"""Location at which a one-atom model has the smallest spread KL from the data.

    The optimum of :math:`E_{\tilde p} \ln k(y | \theta)` is the root of the summed slopes of
    :func:`~spread_analysis.reference.two_deltas_kl`. Gaussian noise gives the mean of the data.
    Laplace noise gives the median of the data *convolved with the noise*, not the data's median.

    :param data: Points on the line, shape ``(num_data,)``.
    :param scale: Scale of the noise.
    :param noise: ``"gaussian"``, ``"laplace"`` or ``"logistic"`` (the kernels for which the problem
        is convex).
    :param weights: Probabilities of shape ``(num_data,)``; None is uniform.
    :raises ValueError: If ``noise`` is not one of the three, ``scale`` not positive or ``data`` not
        a non-empty vector of finite numbers.

    >>> round(point_model_optimum([0.0, 0.2, 5.0], 0.5, "laplace"), 6)
    0.456451
    """
    names = ("gaussian", "laplace", "logistic")
    if noise not in names:
        raise ValueError(f"`noise` must be one of {names}, got {noise!r}.")
    points = as_finite(data, "data")
    if points.ndim != 1 or points.size == 0:
        raise ValueError(f"`data` must have shape (num_data,), got {points.shape}.")
    width = float(as_positive(scale, "scale"))
    probabilities = as_weights(weights, len(points), "weights")
    if noise == "gaussian":
        return float(probabilities @ points)

    def slope(location: float) -> float:
        return float(probabilities @ _kl_slope((location - points) / width, noise))

    low, high = float(points.min()), float(points.max())
    # At the ends every slope has one sign, so the root is bracketed; equal data need no search.
    if slope(low) >= 0 or slope(high) <= 0:
        return low if slope(low) >= 0 else high
    # Products of slopes underflow where the data lie that much closer together than the noise.
    least = np.sqrt(np.finfo(np.float64).tiny) * width
    return float(
        optimize.brentq(slope, low, high, xtol=max(1e-14 * max(abs(low), abs(high)), least))
    )


class LocationVariance(NamedTuple):
    """Asymptotic variance, times the number of data, of a fitted location."""

    fresh: float
    frozen: float


def gaussian_location_variance(data_variance: float, scale: float) -> LocationVariance:
    r"""Variance of a location fitted under Gaussian noise: fresh draws against one frozen draw.

    With fresh noise at every step the noise averages out and :math:`n \mathrm{Var} = \sigma^2`.
    With one frozen draw per datum it stays: :math:`n \mathrm{Var} = \sigma^2 + s^2`.

    :param data_variance: Variance :math:`\sigma^2` of the clean data.
    :param scale: Standard deviation :math:`s` of the noise.
    :raises ValueError: If an argument is not positive.

    Data from a unit Laplace, noise of scale 5:

    >>> gaussian_location_variance(2.0, 5.0)
    LocationVariance(fresh=2.0, frozen=27.0)
    """
    clean = float(as_positive(data_variance, "data_variance"))
    return LocationVariance(clean, clean + float(as_positive(scale, "scale")) ** 2)


class DenoisedMoments(NamedTuple):
    """Posterior mean and variance of the clean datum given the spread one."""

    mean: FloatArray
    variance: FloatArray


def two_point_posterior(y: ArrayLike, location: float, scale: float) -> DenoisedMoments:
    r"""Posterior of the clean datum for data at :math:`\pm a` under Gaussian noise.

    :math:`E[x|y] = a \tanh(a y / s^2)` and
    :math:`\mathrm{Var}[x|y] = a^2 \mathrm{sech}^2(a y / s^2)`, by Tweedie's formula
    (Efron 2011, "Tweedie's formula and selection bias", eq. 2.8).

    :param y: Spread data, any shape.
    :param location: The :math:`a`; the data are at plus and minus it with equal probability.
    :param scale: Standard deviation of the noise.
    :raises ValueError: If ``scale`` is not positive or an argument not finite.

    >>> mean, variance = two_point_posterior(0.0, 2.0, 1.0)
    >>> float(mean), float(variance)
    (0.0, 4.0)
    """
    a = as_finite(location, "location")
    angle = a * as_finite(y, "y") / np.square(as_positive(scale, "scale"))
    # sech^2 = 4 e^-2u / (1 + e^-2u)^2 does not overflow and keeps the tail that 1 - tanh^2 loses.
    decay = np.exp(-2 * np.abs(angle))
    return DenoisedMoments(a * np.tanh(angle), 4 * np.square(a) * decay / np.square(1 + decay))


def tweedie_posterior(
    y: ArrayLike, atoms: ArrayLike, scale: float, weights: ArrayLike | None = None
) -> DenoisedMoments:
    r"""Posterior of the clean datum for any finite set of atoms under Gaussian noise.

    The mean is :math:`y + s^2 \nabla \ln \tilde p(y)`, the best denoiser there is; the variance is
    per dimension.

    :param y: Spread data of shape ``(..., dim)``.
    :param atoms: Clean data of shape ``(num_atoms, dim)``.
    :param scale: Standard deviation of the noise.
    :param weights: Probabilities of shape ``(num_atoms,)``; None is uniform.
    :return: Mean and variance, both of shape ``(..., dim)``.
    :raises ValueError: If ``scale`` is not positive or shapes do not fit.

    >>> mean, _ = tweedie_posterior([[0.5]], [[-1.0], [1.0]], scale=1.0)
    >>> round(float(mean[0, 0]) - float(np.tanh(0.5)), 12)
    0.0
    """
    points, data = as_finite(atoms, "atoms"), as_finite(y, "y")
    if points.ndim != 2 or points.size == 0:
        raise ValueError(f"`atoms` must have shape (num_atoms, dim), got {points.shape}.")
    if data.ndim == 0 or data.shape[-1] != points.shape[1]:
        raise ValueError(f"`y` must have shape (..., {points.shape[1]}), got {data.shape}.")
    variance = np.square(as_positive(scale, "scale"))
    with np.errstate(divide="ignore"):
        prior = np.log(as_weights(weights, len(points), "weights"))
    squared = np.square(data[..., None, :] - points).sum(-1)
    posterior = special.softmax(prior - squared / (2 * variance), axis=-1)
    mean = posterior @ points
    deviation = np.square(points - mean[..., None, :])
    return DenoisedMoments(mean, np.einsum("...n,...nd->...d", posterior, deviation))
