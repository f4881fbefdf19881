# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

r"""Spread divergences between two deltas.

Two point masses a distance :math:`D` apart have no common support, so every f-divergence between
them is at its maximum and has no gradient. After the same noise kernel on both, the divergence is a
smooth function of :math:`r = D / \text{scale}`. The functions act elementwise. For noise with
independent components in several dimensions, KL sums over dimensions and the Bhattacharyya
coefficient multiplies; for correlated Gaussian noise pass the distance of
:func:`~spread_analysis.reference.mahalanobis_distance` with ``scale=1``.

All divergences are in nats.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate, special

from spread_core.validation import FloatArray, as_finite, as_positive, as_probability

NoiseName = Literal["gaussian", "laplace", "cauchy", "logistic"]
_Elementwise = Callable[[FloatArray], FloatArray]


def _laplace_kl(r: FloatArray) -> FloatArray:
    # r + e^-r - 1 = r^2/2 1F1(1; 3; -r), and the left side cancels at small r.
    return np.where(r < 1, 0.5 * r**2 * special.hyp1f1(1, 3, -np.minimum(r, 1)), r + np.expm1(-r))


def _logistic_kl(r: FloatArray) -> FloatArray:
    x = r / 2
    series = x**2 / 3 - x**4 / 45 + 2 * x**6 / 945 - x**8 / 4725
    safe = np.where(x < 0.05, 1.0, x)
    return 2 * np.where(x < 0.05, series, safe / np.tanh(safe) - 1)


class _Closed(NamedTuple):
    """Closed forms of one kernel of unit scale, as functions of the distance."""

    log_density: _Elementwise
    kl: _Elementwise
    total_variation: _Elementwise
    bhattacharyya: _Elementwise
    chi_squared: _Elementwise


_CLOSED: Mapping[str, _Closed] = {
    "gaussian": _Closed(
        log_density=lambda x: -0.5 * (x**2 + np.log(2 * np.pi)),
        kl=lambda r: r**2 / 2,
        total_variation=lambda r: special.erf(r / np.sqrt(8)),
        bhattacharyya=lambda r: np.exp(-(r**2) / 8),
        chi_squared=lambda r: np.expm1(r**2),
    ),
    "laplace": _Closed(
        log_density=lambda x: -np.abs(x) - np.log(2),
        kl=_laplace_kl,
        total_variation=lambda r: -np.expm1(-r / 2),
        bhattacharyya=lambda r: (1 + r / 2) * np.exp(-r / 2),
        chi_squared=lambda r: (2 * np.expm1(r) + np.expm1(-2 * r)) / 3,
    ),
    "cauchy": _Closed(
        log_density=lambda x: -np.log1p(x**2) - np.log(np.pi),
        kl=lambda r: np.log1p(r**2 / 4),
        total_variation=lambda r: 2 / np.pi * np.arctan(r / 2),
        bhattacharyya=lambda r: 1 / special.agm(1, np.sqrt(1 + r**2 / 4)),
        chi_squared=lambda r: r**2 / 2,
    ),
    "logistic": _Closed(
        log_density=lambda x: -np.abs(x) - 2 * np.log1p(np.exp(-np.abs(x))),
        kl=_logistic_kl,
        total_variation=lambda r: np.tanh(r / 4),
        # (r/2) / sinh(r/2), in the form that neither overflows nor divides zero by zero
        bhattacharyya=lambda r: np.minimum(np.exp(-r / 2) / special.exprel(-r), 1),
        chi_squared=lambda r: 4 / 3 * np.sinh(r / 2) ** 2,
    ),
}


def _lookup(noise: str) -> _Closed:
    if noise not in _CLOSED:
        raise ValueError(f"`noise` must be one of {sorted(_CLOSED)}, got {noise!r}.")
    return _CLOSED[noise]


def _ratio(distance: ArrayLike, scale: ArrayLike) -> FloatArray:
    return np.abs(as_finite(distance, "distance")) / as_positive(scale, "scale")


def _integrate(
    integrand: Callable[[FloatArray, FloatArray], FloatArray],
    log_density: _Elementwise,
    ratio: float,
) -> float:
    """Integrate a function of the two log-densities, noise at 0 and noise at ``ratio``."""

    def at(x: float) -> float:
        point = np.asarray(x)
        return float(integrand(log_density(point), log_density(point - ratio)))

    def tail(u: float, edge: float, direction: float) -> float:
        return at(edge + direction * width * (1.0 - u) / u) * width / u**2

    # Breaks at both kinks and just outside them: a bump far from the middle is never missed.
    # Between far bumps a slow tail spans many orders of magnitude: one break for each.
    width = max(ratio, 1.0)
    decades = 10.0 ** np.arange(2, max(2, np.ceil(np.log10(width))))
    offsets = np.concatenate([[0.0, 5.0, 30.0], decades[decades < ratio / 2]])
    inner = {float(c + sign * w) for c in (0.0, ratio) for w in offsets for sign in (-1, 1)}
    breaks = sorted(inner | {ratio / 2})
    options = {"epsabs": 1e-13, "epsrel": 1e-12, "limit": 200}
    total = sum(integrate.quad(at, *pair, **options)[0] for pair in itertools.pairwise(breaks))
    # Outside all breaks the integrand varies over the distance, not over the unit of QUADPACK.
    for edge, direction in ((breaks[0], -1.0), (breaks[-1], 1.0)):
        total += integrate.quad(tail, 0.0, 1.0, args=(edge, direction), **options)[0]
    return float(total)


def two_deltas_kl(
    distance: ArrayLike, scale: ArrayLike, noise: NoiseName = "gaussian"
) -> FloatArray:
    r"""KL divergence between two deltas after noise, in nats.

    Gaussian :math:`r^2/2`; Laplace :math:`r + e^{-r} - 1`; Cauchy :math:`\ln(1 + r^2/4)`; logistic
    :math:`r \coth(r/2) - 2`. It is symmetric, because the kernels are.

    :param distance: Distance :math:`D` of the two deltas, any shape.
    :param scale: Scale of the noise, broadcast against ``distance``.
    :param noise: One of ``"gaussian"``, ``"laplace"``, ``"cauchy"``, ``"logistic"``.
    :raises ValueError: If ``noise`` is unknown, ``scale`` not positive or ``distance`` not finite.

    >>> float(two_deltas_kl(2.0, 1.0))
    2.0
    >>> round(float(two_deltas_kl(2.0, 1.0, "laplace")), 6)
    1.135335
    """
    return _lookup(noise).kl(_ratio(distance, scale))


def two_deltas_total_variation(
    distance: ArrayLike, scale: ArrayLike, noise: NoiseName = "gaussian"
) -> FloatArray:
    r"""Total variation distance between two deltas after noise, in [0, 1].

    Gaussian :math:`\mathrm{erf}(r / 2\sqrt 2)`; Laplace :math:`1 - e^{-r/2}`; Cauchy
    :math:`\frac{2}{\pi} \arctan(r/2)`; logistic :math:`\tanh(r/4)`.

    :param distance: Distance of the two deltas, any shape.
    :param scale: Scale of the noise, broadcast against ``distance``.
    :param noise: Name of the kernel, see :func:`two_deltas_kl`.
    :raises ValueError: As :func:`two_deltas_kl`.

    >>> round(float(two_deltas_total_variation(2.0, 1.0, "cauchy")), 6)
    0.5
    """
    return _lookup(noise).total_variation(_ratio(distance, scale))


def two_deltas_bhattacharyya(
    distance: ArrayLike, scale: ArrayLike, noise: NoiseName = "gaussian"
) -> FloatArray:
    r"""Bhattacharyya coefficient :math:`\int \sqrt{\tilde p \tilde q}` of two deltas after noise.

    Gaussian :math:`e^{-r^2/8}`; Laplace :math:`(1 + r/2) e^{-r/2}`; Cauchy
    :math:`1 / \mathrm{agm}(1, \sqrt{1 + r^2/4})`; logistic :math:`(r/2) / \sinh(r/2)`. The squared
    Hellinger distance is one minus it.

    :param distance: Distance of the two deltas, any shape.
    :param scale: Scale of the noise, broadcast against ``distance``.
    :param noise: Name of the kernel, see :func:`two_deltas_kl`.
    :raises ValueError: As :func:`two_deltas_kl`.

    >>> float(two_deltas_bhattacharyya(0.0, 1.0, "logistic"))
    1.0
    """
    # Rounding may carry it over 1, and the squared Hellinger distance below 0.
    return np.minimum(_lookup(noise).bhattacharyya(_ratio(distance, scale)), 1.0)


def two_deltas_chi_squared(
    distance: ArrayLike, scale: ArrayLike, noise: NoiseName = "gaussian"
) -> FloatArray:
    r"""Pearson :math:`\chi^2 = \int \tilde p^2 / \tilde q - 1` of two deltas after noise.

    Gaussian :math:`e^{r^2} - 1`; Laplace :math:`\frac{2}{3} e^r + \frac{1}{3} e^{-2r} - 1`; Cauchy
    :math:`r^2/2`; logistic :math:`\frac{4}{3} \sinh^2(r/2)`. It is inf where float64 overflows.

    :param distance: Distance of the two deltas, any shape.
    :param scale: Scale of the noise, broadcast against ``distance``.
    :param noise: Name of the kernel, see :func:`two_deltas_kl`.
    :raises ValueError: As :func:`two_deltas_kl`.

    >>> float(two_deltas_chi_squared(2.0, 1.0, "cauchy"))
    2.0
    """
    ratio = _ratio(distance, scale)
    with np.errstate(over="ignore"):
        return _lookup(noise).chi_squared(ratio)


def two_deltas_js(
    distance: ArrayLike,
    scale: ArrayLike,
    noise: NoiseName = "gaussian",
    pi: float = 0.5,
) -> FloatArray:
    r"""Jensen-Shannon divergence between two deltas after noise, in nats, by quadrature.

    .. math::

        JS_\pi = \pi KL[\tilde p \| m] + (1 - \pi) KL[\tilde q \| m], \qquad
        m = \pi \tilde p + (1 - \pi) \tilde q

    (Huszar 2015, arXiv:1511.05101). It has no closed form; the quadrature is exact to about 1e-10.

    :param distance: Distance of the two deltas, any shape.
    :param scale: Scale of the noise, broadcast against ``distance``.
    :param noise: Name of the kernel, see :func:`two_deltas_kl`.
    :param pi: Weight of the first delta, strictly between 0 and 1.
    :raises ValueError: As :func:`two_deltas_kl`, and if ``pi`` is out of range.

    >>> round(float(two_deltas_js(2.0, 1.0)), 7)
    0.3368308
    """
    log_density = _lookup(noise).log_density
    weight = as_probability(pi, "pi")
    log_pi, log_rest = np.log(weight), np.log1p(-weight)

    def integrand(log_p: FloatArray, log_q: FloatArray) -> FloatArray:
        log_m = np.logaddexp(log_pi + log_p, log_rest + log_q)
        from_p = weight * np.exp(log_p) * (log_p - log_m)
        return from_p + (1 - weight) * np.exp(log_q) * (log_q - log_m)

    ratio = _ratio(distance, scale)
    values = [_integrate(integrand, log_density, float(r)) for r in ratio.ravel()]
    return np.asarray(values).reshape(ratio.shape)


class LogRatioMoments(NamedTuple):
    """Mean and variance of a one-draw log-ratio, in nats and squared nats."""

    mean: FloatArray
    variance: FloatArray


def two_deltas_log_ratio_moments(
    distance: ArrayLike, scale: ArrayLike, noise: NoiseName = "gaussian"
) -> LogRatioMoments:
    r"""Mean and variance of :math:`\ln \tilde p(y) / \tilde q(y)` at one :math:`y \sim \tilde p`.

    The mean is the spread KL. The variance sets the tolerance of a Monte Carlo estimate of it:
    :math:`n` draws have standard error :math:`\sqrt{\mathrm{variance} / n}`. Gaussian: :math:`r^2`.
    Laplace: :math:`r^2 - 2r + 4 - (2r + 4) e^{-r}` minus the squared mean. The others come from
    quadrature.

    :param distance: Distance of the two deltas, any shape.
    :param scale: Scale of the noise, broadcast against ``distance``.
    :param noise: Name of the kernel, see :func:`two_deltas_kl`.
    :raises ValueError: As :func:`two_deltas_kl`.

    >>> mean, variance = two_deltas_log_ratio_moments(3.0, 1.0)
    >>> float(mean), float(variance)
    (4.5, 9.0)
    """
    closed, ratio = _lookup(noise), _ratio(distance, scale)
    mean = closed.kl(ratio)
    if noise == "gaussian":
        return LogRatioMoments(mean, np.square(ratio))
    if noise == "laplace":
        second = np.square(ratio) - 2 * ratio + 4 - (2 * ratio + 4) * np.exp(-ratio)
        return LogRatioMoments(mean, np.maximum(second - np.square(mean), 0.0))

    def integrand(log_p: FloatArray, log_q: FloatArray) -> FloatArray:
        return np.exp(log_p) * np.square(log_p - log_q)

    seconds = [_integrate(integrand, closed.log_density, float(r)) for r in ratio.ravel()]
    return LogRatioMoments(mean, np.asarray(seconds).reshape(ratio.shape) - np.square(mean))


def student_t_deltas_kl(distance: ArrayLike, df: float, scale: ArrayLike = 1.0) -> FloatArray:
    r"""KL divergence between two deltas after Student-t noise, in nats, by quadrature.

    :param distance: Distance of the two deltas, any shape.
    :param df: Degrees of freedom, positive; one is Cauchy noise.
    :param scale: Scale of the noise, broadcast against ``distance``.
    :raises ValueError: If ``df`` or ``scale`` is not positive or ``distance`` not finite.

    >>> round(float(student_t_deltas_kl(2.0, df=1.0)), 7) == round(float(np.log(2.0)), 7)
    True
    """
    nu = float(as_positive(df, "df"))
    log_norm = special.gammaln((nu + 1) / 2) - special.gammaln(nu / 2) - 0.5 * np.log(np.pi * nu)

    def log_density(x: FloatArray) -> FloatArray:
        return log_norm - 0.5 * (nu + 1) * np.log1p(np.square(x) / nu)

    def integrand(log_p: FloatArray, log_q: FloatArray) -> FloatArray:
        return np.exp(log_p) * (log_p - log_q)

    ratio = _ratio(distance, scale)
    values = [_integrate(integrand, log_density, float(r)) for r in ratio.ravel()]
    return np.asarray(values).reshape(ratio.shape)
