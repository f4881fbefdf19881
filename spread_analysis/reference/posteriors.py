# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Posteriors and evidences of small latent-variable models, exact or by quadrature, in nats."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from spread_core.validation import FloatArray, as_finite, as_positive


def _constant(values: ArrayLike) -> FloatArray:
    array = np.array(values, np.float64)
    array.setflags(write=False)  # a constant of a module, shared by all who read it
    return array


#: The four-point data set of Mescheder et al. 2017 (arXiv:1701.04722, section 4.1): one-hot rows.
FOUR_POINTS = _constant(np.eye(4))
#: Largest mean log p(x) of a model of :data:`FOUR_POINTS`: each has probability a quarter.
FOUR_POINTS_OPTIMUM = -float(np.log(4))

#: Estimated effects of the eight schools (Rubin 1981, "Estimation in parallel randomized
#: experiments").
EIGHT_SCHOOLS_EFFECTS = _constant([28, 8, -3, 7, -1, 1, 18, 12])
#: Their standard errors.
EIGHT_SCHOOLS_ERRORS = _constant([15, 10, 16, 11, 9, 11, 10, 18])


class ConjugatePosterior(NamedTuple):
    """Mean and standard deviation of the Gaussian posterior."""

    mean: FloatArray
    sd: FloatArray


def conjugate_evidence(scale: ArrayLike, x: ArrayLike) -> FloatArray:
    r"""Log evidence of :math:`z \sim N(0, 1)`, :math:`x \mid z \sim N(z, s^2)`, in nats.

    :param scale: The :math:`s`, broadcast against ``x``.
    :param x: The observation, any shape.
    :raises ValueError: If ``scale`` is not positive or ``x`` not finite.

    >>> np.round(conjugate_evidence([1.0, 0.1, 0.1], [2.0, 2.0, 5.0]), 8)
    array([ -2.26551212,  -2.90411172, -13.30015132])
    """
    variance = 1 + np.square(as_positive(scale, "scale"))
    return np.asarray(stats.norm.logpdf(as_finite(x, "x"), scale=np.sqrt(variance)))


def conjugate_posterior(scale: ArrayLike, x: ArrayLike) -> ConjugatePosterior:
    r"""Posterior of :math:`z` in the model of :func:`conjugate_evidence`.

    :param scale: The :math:`s`, broadcast against ``x``.
    :param x: The observation, any shape.
    :raises ValueError: If ``scale`` is not positive or ``x`` not finite.

    >>> mean, sd = conjugate_posterior(1.0, 2.0)
    >>> float(mean), round(float(sd), 6)
    (1.0, 0.707107)
    """
    s, data = as_positive(scale, "scale"), as_finite(x, "x")
    # s / sqrt(1 + s²) keeps its digits where 1 - 1 / (1 + s²) would not.
    mean, sd = np.broadcast_arrays(data / (1 + np.square(s)), s / np.hypot(1, s))
    return ConjugatePosterior(np.array(mean), np.array(sd))


class BimodalPosterior(NamedTuple):
    r"""The posterior of :math:`z` on a uniform grid.

    :param log_evidence: :math:`\log p(x)` in nats.
    :param mean_abs: :math:`E|z|`.
    :param mode_masses: Probabilities of ``z < 0`` and ``z > 0``.
    :param grid: Shape ``(num_points,)``, symmetric about zero.
    :param density: The posterior density on the grid.
    """

    log_evidence: float
    mean_abs: float
    mode_masses: tuple[float, float]
    grid: FloatArray
    density: FloatArray


def _squared_noise(scale: float, x: float) -> tuple[float, float]:
    return float(as_positive(scale, "scale")), float(as_finite(x, "x"))


def bimodal_posterior(scale: float, x: float = 1.0) -> BimodalPosterior:
    r"""Posterior of :math:`z \sim N(0, 1)`, :math:`x \mid z \sim N(z^2, s^2)`, by quadrature.

    For positive ``x`` it has two equal modes near :math:`\pm\sqrt{x}`.

    :param scale: The :math:`s`.
    :param x: The observation.
    :raises ValueError: If ``scale`` is not positive or ``x`` not finite.

    >>> posterior = bimodal_posterior(0.5)
    >>> round(posterior.log_evidence, 6), round(posterior.mean_abs, 5)
    (-1.196005, 0.7925)
    """
    s, data = _squared_noise(scale, x)
    # The trapezoidal rule converges faster than any power of the step on such smooth decaying
    # integrands; twenty points across the narrowest bump are plenty.
    limit = 12.0 + np.sqrt(max(data, 0.0))
    width = 1 / np.sqrt(1 + 4 * abs(data) / s**2 + 1 / s)
    half = int(np.ceil(20 * limit / width))
    step = limit / half
    grid = step * np.arange(-half, half + 1)
    log_joint = stats.norm.logpdf(grid) + stats.norm.logpdf(data, grid**2, s)
    log_evidence = float(special.logsumexp(log_joint) + np.log(step))
    density = np.exp(log_joint - log_evidence)
    # The slope of |z| jumps at zero, which costs the trapezoidal rule an error of step²/12 times
    # the jump of the slope, 2 p(0) here.
    mean_abs = step * np.abs(grid) @ density + step**2 / 6 * density[half]
    negative, positive = (
        float(step * (part.sum() - part[at] / 2))
        for part, at in ((density[: half + 1], -1), (density[half:], 0))
    )
    return BimodalPosterior(log_evidence, float(mean_abs), (negative, positive), grid, density)


def bimodal_gaussian_gap(scale: float, x: float = 1.0) -> float:
    r"""Least :math:`\mathrm{KL}[q \| p(z|x)]` of a Gaussian :math:`q` in that model, in nats.

    What a guide pays that has only one mode; its best ELBO is the log evidence minus the gap.

    :param scale: The :math:`s` of :func:`bimodal_posterior`.
    :param x: The observation.
    :raises ValueError: If ``scale`` is not positive or ``x`` not finite.

    >>> round(bimodal_gaussian_gap(0.5), 3)
    0.548
    """
    s, data = _squared_noise(scale, x)

    def negative_elbo(parameters: FloatArray) -> float:
        mean, variance = parameters[0], np.exp(2 * parameters[1])
        second = mean**2 + variance
        fourth = mean**4 + 6 * mean**2 * variance + 3 * variance**2
        misfit = (fourth - 2 * data * second + data**2) / (2 * s**2)
        kl = (second - 1) / 2 - parameters[1]
        return float(misfit + np.log(s) + np.log(2 * np.pi) / 2 + kl)

    # It may be best to sit in one mode or to straddle both.
    starts = [(np.sqrt(max(data, 0.0)), np.log(s / (1 + s))), (0.0, 0.0)]
    best = min(
        optimize.minimize(negative_elbo, start, method="BFGS", options={"gtol": 1e-9}).fun
        for start in starts
    )
    return float(best + bimodal_posterior(s, data).log_evidence)


class EightSchoolsPosterior(NamedTuple):
    r"""Moments of the posterior of the eight schools.

    :param log_evidence: :math:`\log p(y)` in nats.
    :param mu_mean: Mean of :math:`\mu`; ``mu_sd`` is its standard deviation.
    :param abs_tau_mean: Mean of :math:`|\tau|`; ``abs_tau_sd`` is its standard deviation.
    :param positive_tau: Probability of :math:`\tau > 0`.
    :param theta_mean: Means of the effects, shape ``(8,)``; ``theta_sd`` are their deviations.
    :param tau_grid: Values of :math:`\tau`, denser near zero, shape ``(num_points,)``.
    :param tau_density: The posterior density of :math:`\tau` on them.
    """

    log_evidence: float
    mu_mean: float
    mu_sd: float
    abs_tau_mean: float
    abs_tau_sd: float
    positive_tau: float
    theta_mean: FloatArray
    theta_sd: FloatArray
    tau_grid: FloatArray
    tau_density: FloatArray


def eight_schools_posterior(
    prior: str = "cauchy", scale: float = 5.0, mu_scale: float = 5.0
) -> EightSchoolsPosterior:
    r"""Posterior of the eight schools with a scale :math:`\tau` that may be negative.

    :math:`y_j \sim N(\theta_j, \sigma_j^2)`, :math:`\theta_j = \mu + \tau \eta_j` with
    :math:`\eta_j \sim N(0, 1)`, :math:`\mu \sim N(0, s_\mu^2)` and :math:`\tau` from a symmetric
    prior over the whole line. Only :math:`|\tau|` is identified, so that the posterior of
    :math:`(\tau, \eta)` has two mirror-image modes, while :math:`|\tau|` has the usual
    half-Cauchy or half-normal prior. Given :math:`\tau` all else is Gaussian and integrated
    analytically; :math:`\tau` is left to quadrature.

    :param prior: ``"cauchy"`` or ``"normal"``, the prior of :math:`\tau`.
    :param scale: Its scale.
    :param mu_scale: Prior standard deviation of :math:`\mu`.
    :raises ValueError: If ``prior`` is neither or a scale not positive.

    >>> posterior = eight_schools_posterior()
    >>> round(posterior.mu_mean, 2), round(posterior.abs_tau_mean, 2)
    (4.4, 3.6)
    """
    priors = {"cauchy": stats.cauchy, "normal": stats.norm}
    if prior not in priors:
        raise ValueError(f"`prior` must be one of {tuple(priors)}, got {prior!r}.")
    width, mu_sd = float(as_positive(scale, "scale")), float(as_positive(mu_scale, "mu_scale"))
    # tau = scale sinh(u) reaches e^8 scales, where even Cauchy times likelihood is below 1e-30.
    u, step = np.linspace(-8, 8, 8001, retstep=True)
    tau, weight = width * np.sinh(u), width * np.cosh(u) * step
    effects, noise = EIGHT_SCHOOLS_EFFECTS, np.square(EIGHT_SCHOOLS_ERRORS)
    squared = np.square(tau)[:, None]
    variance = noise + squared
    mu_precision = 1 / mu_sd**2 + (1 / variance).sum(1)
    mu_mean = (effects / variance).sum(1) / mu_precision
    # log p(y | tau): the densities at mu = mu_mean, and what completing the square leaves.
    log_likelihood = stats.norm.logpdf(effects, mu_mean[:, None], np.sqrt(variance)).sum(1)
    log_likelihood += stats.norm.logpdf(mu_mean, 0, mu_sd) + np.log(2 * np.pi / mu_precision) / 2
    log_joint = log_likelihood + priors[prior].logpdf(tau, scale=width)
    log_evidence = float(special.logsumexp(log_joint, b=weight))
    density = np.exp(log_joint - log_evidence)
    mass = weight * density

    shrinkage = squared / variance  # weight of a school's own effect
    theta_mean = shrinkage * effects + (1 - shrinkage) * mu_mean[:, None]
    theta_variance = shrinkage * noise + np.square(1 - shrinkage) / mu_precision[:, None]
    mu = mass @ mu_mean
    theta = mass @ theta_mean
    abs_tau = mass @ np.abs(tau)
    return EightSchoolsPosterior(
        log_evidence=log_evidence,
        mu_mean=float(mu),
        mu_sd=float(np.sqrt(mass @ (np.square(mu_mean - mu) + 1 / mu_precision))),
        abs_tau_mean=float(abs_tau),
        abs_tau_sd=float(np.sqrt(mass @ np.square(np.abs(tau) - abs_tau))),
        positive_tau=float(mass[tau > 0].sum() + mass[tau == 0].sum() / 2),
        theta_mean=theta,
        theta_sd=np.sqrt(mass @ (np.square(theta_mean - theta) + theta_variance)),
        tau_grid=tau,
        tau_density=density,
    )
