# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

r"""KL and generalised Jensen-Shannon divergences of Gaussians, their gradients and their optima.

With :math:`M = \pi P + (1 - \pi) Q`,

.. math:: JS_\pi[P \| Q] = \pi KL[P \| M] + (1 - \pi) KL[Q \| M]

(Huszar 2015, arXiv:1511.05101). It has no closed form; here it comes from deterministic quadrature
in float64, to about 1e-13. P is the data and Q the model; everything is in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from spread_core.validation import FloatArray, as_finite, as_positive, as_probability

GeneratorLossName = Literal["saturating", "non_saturating", "reverse_kl", "kl"]
DivergenceName = Literal["js", "reverse_kl", "kl"]
_LogDensity = Callable[[FloatArray], FloatArray]


class LocationScaleGradient(NamedTuple):
    """Gradient with respect to the parameters of a Gaussian model.

    :param loc: Derivative with respect to the mean.
    :param scale: Derivative with respect to the standard deviation.
    """

    loc: float
    scale: float


class FittedNormal(NamedTuple):
    """A Gaussian that minimises a divergence.

    :param loc: Its mean.
    :param scale: Its standard deviation.
    """

    loc: float
    scale: float


def _number(value: float, name: str, *, positive: bool = False) -> float:
    array = as_finite(value, name)
    if array.ndim != 0:
        raise ValueError(f"`{name}` must be a number, got shape {array.shape}.")
    return float(as_positive(array, name) if positive else array)


def _closed_unit(pi: float) -> float:
    number = float(pi)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"`pi` must lie in [0, 1], got {number}.")
    return number


def _choice(value: str, options: Sequence[str], name: str) -> None:
    if value not in options:
        raise ValueError(f"`{name}` must be one of {sorted(options)}, got {value!r}.")


def _panels(breaks: FloatArray, num_nodes: int) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights of Gauss-Legendre quadrature between consecutive breaks."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    half = np.diff(breaks)[:, None] / 2
    middle = (breaks[1:] + breaks[:-1])[:, None] / 2
    return (middle + half * nodes).ravel(), (half * weights).ravel()


def _line(*normals: tuple[float, float]) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights on the line that resolve every one of some Gaussians to 12 deviations.

    Log-ratios of Gaussians change fastest where the narrower one has its mass, so panels of half a
    deviation of each resolve them too.
    """
    steps = np.arange(-24, 25) / 2
    return _panels(np.unique([loc + scale * steps for loc, scale in normals]), 16)


def _log_normal(x: FloatArray, loc: float, scale: float) -> FloatArray:
    return -0.5 * np.square((x - loc) / scale) - np.log(scale) - 0.5 * np.log(2 * np.pi)


def _log_mixture(log_p: FloatArray, log_q: FloatArray, pi: float) -> FloatArray:
    return np.logaddexp(np.log(pi) + log_p, np.log1p(-pi) + log_q)


def class_entropy(pi: float) -> float:
    r"""Entropy :math:`H(\pi) = -\pi \log \pi - (1 - \pi) \log(1 - \pi)`, in nats.

    It is the greatest value of :math:`JS_\pi`, reached by disjoint supports.

    :param pi: Weight of the data, in [0, 1].
    :raises ValueError: If ``pi`` is out of range.

    >>> round(class_entropy(0.5), 6)
    0.693147
    """
    prior = _closed_unit(pi)
    return float(special.entr(prior) - special.xlog1py(1 - prior, -prior))


def kl_normals(loc_p: float, scale_p: float, loc_q: float, scale_q: float) -> float:
    r""":math:`KL[P \| Q]` of two Gaussians on the line, in nats, in closed form.

    :param loc_p: Mean of P.
    :param scale_p: Standard deviation of P, positive.
    :param loc_q: Mean of Q.
    :param scale_q: Standard deviation of Q, positive.
    :raises ValueError: If an argument is not a finite number or a scale is not positive.

    >>> round(kl_normals(0.0, 1.0, 1.0, 2.0), 10)
    0.4431471806
    """
    p, q = _pair(loc_p, scale_p, loc_q, scale_q)
    squared = (p[1] / q[1]) ** 2
    # (r - 1 - log r) / 2 plus the mean term; log1p keeps it accurate where the scales are close.
    excess = (p[1] - q[1]) * (p[1] + q[1]) / q[1] ** 2
    log_ratio = np.log1p(excess) if abs(excess) < 0.5 else np.log(squared)
    return float(0.5 * (excess - log_ratio + ((p[0] - q[0]) / q[1]) ** 2))


def _pair(
    loc_p: float, scale_p: float, loc_q: float, scale_q: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    p = _number(loc_p, "loc_p"), _number(scale_p, "scale_p", positive=True)
    return p, (_number(loc_q, "loc_q"), _number(scale_q, "scale_q", positive=True))


def js_divergence_normals(
    loc_p: float, scale_p: float, loc_q: float, scale_q: float, pi: float = 0.5
) -> float:
    r""":math:`JS_\pi[P \| Q]` of two Gaussians on the line, in nats, by quadrature.

    :param loc_p: Mean of P.
    :param scale_p: Standard deviation of P, positive.
    :param loc_q: Mean of Q.
    :param scale_q: Standard deviation of Q, positive.
    :param pi: Weight of P, strictly between 0 and 1.
    :raises ValueError: If an argument is not a finite number, a scale is not positive or ``pi`` is
        out of range.

    >>> round(js_divergence_normals(0.0, 1.0, 1.0, 2.0, 0.1), 10)
    0.0406182074
    """
    p, q = _pair(loc_p, scale_p, loc_q, scale_q)
    prior = as_probability(pi, "pi")
    x, weights = _line(p, q)
    return _js(_log_normal(x, *p), _log_normal(x, *q), weights, prior)


def _js(log_p: FloatArray, log_q: FloatArray, weights: FloatArray, pi: float) -> float:
    log_m = _log_mixture(log_p, log_q, pi)
    integrand = pi * np.exp(log_p) * (log_p - log_m)
    return float(weights @ (integrand + (1 - pi) * np.exp(log_q) * (log_q - log_m)))


def _score_gradient(
    x: FloatArray, weights: FloatArray, q: tuple[float, float], value: FloatArray
) -> LocationScaleGradient:
    """Integrate ``value`` against the derivatives of the density of Q."""
    eps = (x - q[0]) / q[1]
    density = weights * np.exp(_log_normal(x, *q)) * value
    return LocationScaleGradient(
        float(density @ eps) / q[1], float(density @ (np.square(eps) - 1)) / q[1]
    )


def divergence_gradient_normals(
    loc_p: float,
    scale_p: float,
    loc_q: float,
    scale_q: float,
    pi: float = 0.5,
    divergence: DivergenceName = "js",
) -> LocationScaleGradient:
    r"""Gradient of a divergence of two Gaussians in the parameters of Q, in nats per unit.

    Differentiated under the integral,
    :math:`\nabla JS_\pi = (1 - \pi) \int \nabla q \, \log(q / m)`; the terms in which the logarithm
    is differentiated cancel. The two KL divergences are in closed form.

    :param loc_p: Mean of P.
    :param scale_p: Standard deviation of P, positive.
    :param loc_q: Mean of Q.
    :param scale_q: Standard deviation of Q, positive.
    :param pi: Weight of P, strictly between 0 and 1; without effect on the KL divergences.
    :param divergence: ``"js"``, ``"kl"`` for :math:`KL[P \| Q]` or ``"reverse_kl"`` for
        :math:`KL[Q \| P]`.
    :raises ValueError: As :func:`js_divergence_normals`, and for an unknown ``divergence``.

    >>> divergence_gradient_normals(0.0, 1.0, 2.0, 1.0, divergence="reverse_kl")
    LocationScaleGradient(loc=2.0, scale=0.0)
    """
    p, q = _pair(loc_p, scale_p, loc_q, scale_q)
    prior = as_probability(pi, "pi")
    _choice(divergence, get_args(DivergenceName), "divergence")
    shift = q[0] - p[0]
    if divergence == "reverse_kl":
        return LocationScaleGradient(shift / p[1] ** 2, q[1] / p[1] ** 2 - 1 / q[1])
    if divergence == "kl":
        second = (p[1] ** 2 + shift**2) / q[1] ** 2
        return LocationScaleGradient(shift / q[1] ** 2, (1 - second) / q[1])
    x, weights = _line(p, q)
    log_q = _log_normal(x, *q)
    log_m = _log_mixture(_log_normal(x, *p), log_q, prior)
    return _score_gradient(x, weights, q, (1 - prior) * (log_q - log_m))


def generator_gradient_normals(
    loc_p: float,
    scale_p: float,
    loc_q: float,
    scale_q: float,
    pi: float = 0.5,
    loss: GeneratorLossName = "saturating",
) -> LocationScaleGradient:
    r"""Gradient that an optimal critic, held fixed, sends into a Gaussian generator.

    The samples are :math:`x = \text{loc}_q + \text{scale}_q \epsilon`, the critic's logit is
    :math:`l = \log(p / q) + \log(\pi / (1 - \pi))` with :math:`D` its sigmoid, and only :math:`x`
    is differentiated. In expectation over :math:`\epsilon` (by quadrature) the gradients are

    ====================  ==============================  ========================================
    loss                  per sample                      gradient of
    ====================  ==============================  ========================================
    ``"saturating"``      :math:`(1 - \pi) \log(1 - D)`   :math:`JS_\pi`
    ``"non_saturating"``  :math:`-\log D`                 :math:`KL[Q \| P] - JS_\pi / (1 - \pi)`
    ``"reverse_kl"``      :math:`-\log(p / q)`            :math:`KL[Q \| P]`
    ``"kl"``              :math:`-p / q`                  :math:`KL[P \| Q]`
    ====================  ==============================  ========================================

    (Huszar 2015, arXiv:1511.05101; Nowozin et al. 2016, arXiv:1606.00709).

    :param loc_p: Mean of P.
    :param scale_p: Standard deviation of P, positive.
    :param loc_q: Mean of Q.
    :param scale_q: Standard deviation of Q, positive.
    :param pi: Weight of P, strictly between 0 and 1.
    :param loss: Name of the generator's loss.
    :raises ValueError: As :func:`js_divergence_normals`, and for an unknown ``loss``.

    >>> gradient = generator_gradient_normals(0.0, 1.0, 2.0, 1.0, 0.9, "reverse_kl")
    >>> round(gradient.loc, 10)
    2.0
    """
    p, q = _pair(loc_p, scale_p, loc_q, scale_q)
    prior = as_probability(pi, "pi")
    _choice(loss, get_args(GeneratorLossName), "loss")
    x, weights = _line(p, q)
    log_p, log_q = _log_normal(x, *p), _log_normal(x, *q)
    logit = log_p - log_q + np.log(prior) - np.log1p(-prior)
    density = np.exp(log_q)
    # Density of Q times the derivative of the loss in the logit.
    if loss == "saturating":
        outer = -(1 - prior) * density * special.expit(logit)
    elif loss == "non_saturating":
        outer = -density * special.expit(-logit)
    elif loss == "reverse_kl":
        outer = -density
    else:
        outer = -np.exp(log_p)  # q exp(log p - log q), without the overflow
    slope = (x - q[0]) / q[1] ** 2 - (x - p[0]) / p[1] ** 2
    terms = weights * outer * slope
    return LocationScaleGradient(float(terms.sum()), float(terms @ ((x - q[0]) / q[1])))


def isotropic_js_optimum(eigenvalues: ArrayLike, pi: float) -> float:
    r"""Variance of the isotropic Gaussian nearest to a two-dimensional one under :math:`JS_\pi`.

    P is :math:`N(0, \Sigma)` with the given eigenvalues and Q is :math:`N(0, v I)`. From the
    arithmetic mean of the eigenvalues at :math:`\pi = 0`, where :math:`JS_\pi` acts as
    :math:`KL[P \| Q]` and covers, :math:`v` falls to their harmonic mean at :math:`\pi = 1`, where
    it acts as :math:`KL[Q \| P]` and seeks a mode; :math:`v(\pi) v(1 - \pi) = \det \Sigma`
    (the picture of Huszar 2015, arXiv:1511.05101).

    :param eigenvalues: The two eigenvalues of :math:`\Sigma`, positive.
    :param pi: Weight of P, in [0, 1].
    :raises ValueError: If ``eigenvalues`` are not two positive numbers or ``pi`` is out of range.

    >>> round(isotropic_js_optimum([0.1, 1.9], 0.5), 5)
    0.43589
    """
    values = as_finite(as_positive(eigenvalues, "eigenvalues"), "eigenvalues")
    if values.shape != (2,):
        raise ValueError(f"`eigenvalues` must hold two numbers, got shape {values.shape}.")
    prior = _closed_unit(pi)
    arithmetic, harmonic = float(values.mean()), float(2 / (1 / values).sum())
    if prior == 0.0 or arithmetic - harmonic <= 1e-12 * arithmetic:
        return arithmetic
    if prior == 1.0:
        return harmonic

    # Polar coordinates of Q: s = |x|²/(2 v) is a unit exponential, the angle uniform. Log-ratios
    # vary with log s and with log tan(angle), hence the panels that double and the substitution
    # angle = atan(e^t), in which the trapezoid rule converges geometrically.
    breaks = np.concatenate([[0.0], 2.0 ** np.arange(-16, 2), np.arange(4.0, 61.0, 2.0)])
    s, weights_s = _panels(breaks, 10)
    t = np.linspace(-24.0, 24.0, 801)
    weights_t = (t[1] - t[0]) / np.cosh(t) / np.pi
    precision = special.expit(-2 * t) / values[0] + special.expit(2 * t) / values[1]
    radial = weights_s * np.exp(-s) * (s - 1.0)
    half_log_det = 0.5 * np.log(values).sum()

    def slope(log_v: float) -> float:
        # Proportional to -d JS / d log v: the mean over Q of (s - 1) log((1 - pi) + pi p / q)
        v = np.exp(log_v)
        log_ratio = log_v - half_log_det + s[:, None] * (1.0 - v * precision)
        if prior <= 0.5:
            # Accurate for a small pi, where the logarithm is close to zero.
            inner = np.log1p(prior * np.expm1(log_ratio)) / prior
        else:
            inner = np.logaddexp(np.log1p(-prior), np.log(prior) + log_ratio)
        return float(radial @ (inner @ weights_t))

    return float(
        np.exp(
            optimize.brentq(slope, np.log(harmonic) - 1e-3, np.log(arithmetic) + 1e-3, rtol=1e-13)
        )
    )


def mixture_js_optimum(loc: float, scale: float, pi: float) -> FittedNormal:
    r"""The single Gaussian nearest to a mixture of two under :math:`JS_\pi`.

    P is :math:`\frac12 N(-a, s^2) + \frac12 N(a, s^2)`. At :math:`\pi = 0`, :math:`KL[P \| Q]`, the
    optimum covers both modes; at :math:`\pi = 1`, :math:`KL[Q \| P]`, it sits on one of them if
    they are well apart. The mirrored optimum is as good; the one with a mean of at least zero is
    returned.

    :param loc: Distance :math:`a` of either mode from zero, finite.
    :param scale: Standard deviation :math:`s` of either mode, positive.
    :param pi: Weight of P, in [0, 1].
    :return: Mean and standard deviation of the global optimum.
    :raises ValueError: If an argument is out of range.

    >>> covering = mixture_js_optimum(3.0, 0.5, 0.0)
    >>> covering.loc, round(covering.scale ** 2, 10)
    (0.0, 9.25)
    """
    a, width = abs(_number(loc, "loc")), _number(scale, "scale", positive=True)
    prior = _closed_unit(pi)
    covering = float(np.hypot(a, width))
    if prior == 0.0:
        return FittedNormal(0.0, covering)

    def objective(parameters: FloatArray) -> tuple[float, FloatArray]:
        q = float(parameters[0]) * covering, float(np.exp(parameters[1])) * covering
        x, weights = _line((-a, width), (a, width), q)
        log_q = _log_normal(x, *q)
        log_p = np.logaddexp(_log_normal(x, -a, width), _log_normal(x, a, width)) - np.log(2)
        if prior == 1.0:
            contrast = log_q - log_p
            value = float(weights @ (np.exp(log_q) * contrast))
        else:
            contrast = (log_q - _log_mixture(log_p, log_q, prior)) / prior
            value = _js(log_p, log_q, weights, prior) / (prior * (1 - prior))
        gradient = _score_gradient(x, weights, q, contrast)
        return value, np.array([gradient.loc * covering, gradient.scale * q[1]])

    # The objective has minima at one mode and over both; a start near each, and one between.
    starts = [(0.0, covering), (0.0, width), (a / 2, covering / 2), (a, width)]
    fits = []
    for location, deviation in starts:
        start = np.array([location / covering, np.log(deviation / covering)])
        fits.append(optimize.minimize(objective, start, jac=True, method="BFGS", tol=1e-10))
    best = min(fits, key=lambda fit: float(fit.fun))
    # Rounding leaves a centred optimum a little off zero.
    mean = abs(float(best.x[0]))
    return FittedNormal(
        mean * covering if mean > 1e-6 else 0.0, float(np.exp(best.x[1])) * covering
    )
