# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every divergence, once, with the f that it claims: tests of both backends read this list."""

import numpy as np


def _jspi(pi, normalised=False):
    scale = 1 / (pi * (1 - pi)) if normalised else 1.0

    def f(u):
        m = 1 - pi + pi * u
        return scale * (pi * u * np.log(u) - m * np.log(m))

    def f_prime(u):
        return scale * pi * np.log(u / (1 - pi + pi * u))

    def conjugate(t):
        return scale * (1 - pi) * np.log((1 - pi) / (1 - pi * np.exp(t / (scale * pi))))

    return lambda p: p.JSPi(pi, normalised=normalised), f, f_prime, conjugate


def _neyman_conjugate(t):
    return 2 - 2 * np.sqrt(1 - t)


# name -> (constructor given a package; f, f' and the conjugate f* in NumPy, where f* is short)
DIVERGENCES = {
    "kl": (
        lambda p: p.KL(),
        lambda u: u * np.log(u),
        lambda u: np.log(u) + 1,
        lambda t: np.exp(t - 1),
    ),
    "reverse kl": (
        lambda p: p.ReverseKL(),
        lambda u: -np.log(u),
        lambda u: -1 / u,
        lambda t: -1 - np.log(-t),
    ),
    "js .1": _jspi(0.1),
    "js .5": _jspi(0.5),
    "js .9": _jspi(0.9),
    "js .2 normalised": _jspi(0.2, normalised=True),
    "squared hellinger": (
        lambda p: p.SquaredHellinger(),
        lambda u: (np.sqrt(u) - 1) ** 2,
        lambda u: 1 - 1 / np.sqrt(u),
        lambda t: t / (1 - t),
    ),
    "chi-squared": (
        lambda p: p.ChiSquared(),
        lambda u: (u - 1) ** 2,
        lambda u: 2 * (u - 1),
        lambda t: t + t**2 / 4,
    ),
    "reverse chi-squared": (
        lambda p: p.ReverseChiSquared(),
        lambda u: (u - 1) ** 2 / u,
        lambda u: 1 - 1 / u**2,
        _neyman_conjugate,
    ),
    "jeffreys": (
        lambda p: p.Jeffreys(),
        lambda u: (u - 1) * np.log(u),
        lambda u: np.log(u) + 1 - 1 / u,
        None,
    ),
    "total variation": (lambda p: p.TotalVariation(), lambda u: np.abs(u - 1) / 2, None, None),
}
TRAINED = [name for name in DIVERGENCES if name != "total variation"]
BOUNDED = [name for name in DIVERGENCES if name.startswith(("js", "squared", "total"))]


def instances(package, names=DIVERGENCES):
    """The divergences of a package."""
    return [DIVERGENCES[name][0](package) for name in names]
