# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Latents with heavy tails, tamed.

A location under a half-Cauchy scale has no variance: standardised by what simulations give, all
that matters of it is near 0, and a few simulations are everything else. Such numbers are carried
over by asinh((x - centre) / spread) first, which is linear where most of them are and logarithmic
beyond. Others stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from array_api_compat import array_namespace

from spread_core.math._arrays import Array

Tails = Mapping[str, Array]

#: A standard deviation over so many of those of a normal distribution with these quartiles is heavy
#: tailed: Student's t of three degrees of freedom has 1.5, an exponential scale's 1.4.
_HEAVY = 2.0
_QUARTILES = 1.349
# Of their range.
_BEYOND = 0.25
# Beyond it sinh leaves single precision.
_MOST = 60.0
# Its square does not.
_FAR_OUT = 1e18


def fit_tails(vectors: np.ndarray, may: np.ndarray) -> dict[str, np.ndarray]:
    """
    Which columns are tamed, and how.

    :param vectors: of shape (n, D).
    :param may: which columns may be, of shape (D,): those without ends and classes.
    :return: arrays of shape (D,); a spread of 0 is that of a column that stays as it is.
    """
    values = np.float64(vectors)
    low, centre, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    spread = (high - low) / _QUARTILES
    heavy = may & (spread > 0) & (values.std(0) > _HEAVY * spread)
    dtype = vectors.dtype
    return {
        "centre": np.where(heavy, centre, 0.0).astype(dtype),
        "spread": np.where(heavy, spread, 0.0).astype(dtype),
    }


def reach(t: np.ndarray) -> np.ndarray:
    """
    How far latents without ends are drawn, of shape (2, D): a quarter of their range beyond it.

    A net knows nothing of what lies further off, where one draw would be the mean of all others.

    :param t: standardised latents of the simulations, of shape (n, D).
    """
    low, high = t.min(0), t.max(0)
    more = np.maximum(1.0, _BEYOND * (high - low))
    return np.stack([low - more, high + more]).astype(t.dtype)


def tame(values: Array, tails: Tails) -> Array:
    """
    Values of shape batch + (D,), those of heavy tails tamed.

    :param values: the values.
    :param tails: what :func:`fit_tails` returned.
    """
    xp = array_namespace(values)
    spread = tails["spread"]
    safe = xp.where(spread > 0, spread, 1.0)
    return xp.where(spread > 0, xp.asinh((values - tails["centre"]) / safe), values)


def untame(values: Array, tails: Tails) -> Array:
    """
    The inverse of :func:`tame`.

    :param values: the values.
    :param tails: what :func:`fit_tails` returned.
    """
    xp = array_namespace(values)
    spread = tails["spread"]
    # Where a branch is not taken its gradient must be finite all the same.
    inner = xp.clip(xp.where(spread > 0, values, 0.0), -_MOST, _MOST)
    return xp.where(spread > 0, tails["centre"] + spread * xp.sinh(inner), values)


def log_slope(values: Array, tails: Tails) -> Array:
    """
    Log of the derivative of :func:`tame`.

    :param values: as :func:`tame` takes them.
    :param tails: what :func:`fit_tails` returned.
    """
    xp = array_namespace(values)
    spread = tails["spread"]
    safe = xp.where(spread > 0, spread, 1.0)
    grown = xp.clip((values - tails["centre"]) / safe, -_FAR_OUT, _FAR_OUT)
    return xp.where(spread > 0, -xp.log(safe) - 0.5 * xp.log1p(grown * grown), 0.0)
