# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

r"""Characteristic functions of the stationary spread-noise kernels.

A stationary kernel :math:`k(y - x)` gives a valid spread divergence exactly when its characteristic
function has no zeros (Zhang et al. 2020, "Spread Divergence", arXiv:1811.08968, section 2). All
functions here act elementwise on one frequency; a kernel with independent components has the
product over components.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike
from scipy import special

from spread_core.validation import FloatArray, as_finite, as_positive

# Above this order the uniform expansion of K_nu is exact to rounding, and K_nu itself overflows.
_LARGE_ORDER = 40.0


def gaussian_characteristic_function(omega: ArrayLike, scale: ArrayLike) -> FloatArray:
    r"""Characteristic function of :math:`N(0, s^2)`: :math:`\exp(-s^2 \omega^2 / 2)`.

    :param omega: Frequency, any shape.
    :param scale: Standard deviation :math:`s > 0`, broadcast against ``omega``.
    :raises ValueError: If ``scale`` is not positive or ``omega`` not finite.

    >>> float(gaussian_characteristic_function(0.0, 2.0))
    1.0
    """
    u = as_finite(omega, "omega") * as_positive(scale, "scale")
    return np.exp(-0.5 * np.square(u))


def laplace_characteristic_function(omega: ArrayLike, scale: ArrayLike) -> FloatArray:
    r"""Characteristic function of Laplace noise: :math:`1 / (1 + b^2 \omega^2)`.

    :param omega: Frequency, any shape.
    :param scale: Laplace scale :math:`b > 0`, broadcast against ``omega``.
    :raises ValueError: If ``scale`` is not positive or ``omega`` not finite.

    >>> float(laplace_characteristic_function(0.5, 2.0))
    0.5
    """
    u = as_finite(omega, "omega") * as_positive(scale, "scale")
    return 1.0 / (1.0 + np.square(u))


def cauchy_characteristic_function(omega: ArrayLike, scale: ArrayLike) -> FloatArray:
    r"""Characteristic function of Cauchy noise: :math:`\exp(-\gamma |\omega|)`.

    :param omega: Frequency, any shape.
    :param scale: Half width at half maximum :math:`\gamma > 0`, broadcast against ``omega``.
    :raises ValueError: If ``scale`` is not positive or ``omega`` not finite.

    >>> round(float(cauchy_characteristic_function(-1.0, 2.0)), 6)
    0.135335
    """
    u = as_finite(omega, "omega") * as_positive(scale, "scale")
    return np.exp(-np.abs(u))


def logistic_characteristic_function(omega: ArrayLike, scale: ArrayLike) -> FloatArray:
    r"""Characteristic function of logistic noise: :math:`\pi s \omega / \sinh(\pi s \omega)`.

    :param omega: Frequency, any shape.
    :param scale: Logistic scale :math:`s > 0`, broadcast against ``omega``.
    :raises ValueError: If ``scale`` is not positive or ``omega`` not finite.

    >>> round(float(logistic_characteristic_function(1.0, 1.0)), 6)
    0.272029
    """
    u = np.pi * np.abs(as_finite(omega, "omega") * as_positive(scale, "scale"))
    # 2 u e^-u / (1 - e^-2u): sinh overflows from u = 710 on, this goes to 0 smoothly.
    safe = np.where(u > 0, u, 1.0)
    return np.where(u > 0, 2.0 * safe * np.exp(-safe) / -np.expm1(-2.0 * safe), 1.0)


@cache
def _debye_polynomials() -> tuple[Polynomial, ...]:
    """Polynomials u_1, ..., u_8 of the uniform expansion of K_nu (DLMF 10.41.9)."""
    t = Polynomial([0.0, 1.0])
    polynomials = [Polynomial([1.0])]
    for _ in range(8):
        u = polynomials[-1]
        polynomials.append(0.5 * t**2 * (1 - t**2) * u.deriv() + ((1 - 5 * t**2) * u).integ() / 8)
    return tuple(polynomials[1:])


def _log_debye_sum(t: FloatArray, order: FloatArray) -> FloatArray:
    total = np.zeros_like(t)
    for k, polynomial in enumerate(_debye_polynomials(), start=1):
        total += polynomial(t) * (-1.0 / order) ** k
    return np.log1p(total)


def _log_large_order(u: FloatArray, order: FloatArray) -> FloatArray:
    """Log phi by Debye's expansion, with Stirling's series cancelled by hand against it."""
    z_squared = np.square(np.minimum(u / order, 1e150))  # beyond it the square overflows
    root = np.sqrt(1.0 + z_squared)
    excess = z_squared / (1.0 + root)  # root - 1 without cancellation
    log_phi = order * (np.log1p(excess / 2.0) - excess) - 0.25 * np.log1p(z_squared)
    # The sum at u = 0 stands for the Gamma function: dividing by it makes phi(0) = 1 exactly.
    return log_phi + _log_debye_sum(1.0 / root, order) - _log_debye_sum(np.ones_like(u), order)


def _log_small_order(u: FloatArray, order: FloatArray) -> FloatArray:
    """Log phi by the exponentially scaled Bessel function, for u > 0."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        log_phi = (
            np.log(special.kve(order, u))
            - u
            + order * np.log(u)
            - special.gammaln(order)
            - (order - 1.0) * np.log(2.0)
        )
    # At high order kve overflows while u is small; two terms of the series are exact there.
    curved = (order > 2.0) & (u < 1.0) & ~np.isfinite(log_phi)
    log_phi[curved] = -np.square(u[curved]) / (4.0 * (order[curved] - 1.0))
    # 1 - phi is of order u^(2 min(order, 1)): below rounding, where the logarithms only cancel.
    log_phi[2.0 * np.minimum(order, 1.0) * np.log(u) < -40.0] = 0.0
    # kve is NaN from 1e9 on, where phi underflowed long before.
    log_phi[u > 1e6] = -np.inf
    return log_phi


def student_t_characteristic_function(
    omega: ArrayLike, df: ArrayLike, scale: ArrayLike = 1.0
) -> FloatArray:
    r"""Characteristic function of Student-t noise.

    .. math::

        \varphi(\omega) = \frac{K_{\nu/2}(u)\, u^{\nu/2}}{\Gamma(\nu/2)\, 2^{\nu/2 - 1}},
        \qquad u = \sqrt{\nu}\, s\, |\omega|,

    with limit 1 at zero (Hurst 1995, "The characteristic function of the Student t distribution").
    It is computed on the log scale with the exponentially scaled Bessel function, and for large
    ``df`` with Debye's uniform expansion, so that it is positive wherever float64 can hold it.
    One degree of freedom is Cauchy noise, infinity is Gaussian noise; both are exact.

    :param omega: Frequency, any shape.
    :param df: Degrees of freedom :math:`\nu > 0` (infinity allowed), broadcast against ``omega``.
    :param scale: Scale :math:`s > 0`, broadcast against ``omega``.
    :return: Values in (0, 1], of the broadcast shape.
    :raises ValueError: If ``df`` or ``scale`` is not positive or ``omega`` not finite.

    >>> student_t_characteristic_function([0.0, 1.0], df=3.0).round(6)
    array([1.      , 0.483358])
    """
    frequency, degrees, width = np.broadcast_arrays(
        as_finite(omega, "omega"),
        as_positive(df, "df", allow_inf=True),
        as_positive(scale, "scale"),
    )
    argument = np.abs(frequency * width).ravel()
    nu = degrees.ravel()
    phi = np.ones_like(argument)

    cauchy = nu == 1.0
    phi[cauchy] = np.exp(-argument[cauchy])
    normal = np.isinf(nu)
    phi[normal] = np.exp(-0.5 * np.square(argument[normal]))

    rest = (argument > 0) & ~cauchy & ~normal
    order = nu / 2.0
    for part, log_phi in (
        (rest & (order >= _LARGE_ORDER), _log_large_order),
        (rest & (order < _LARGE_ORDER), _log_small_order),
    ):
        u = np.sqrt(nu[part]) * argument[part]
        phi[part] = np.exp(np.minimum(log_phi(u, order[part]), 0.0))
    return phi.reshape(frequency.shape)
