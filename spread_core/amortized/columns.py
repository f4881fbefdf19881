# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Data on the scale on which a net sees them: every column's normal scores.

A column's empirical distribution function is carried over to the standard normal's, which tames
heavy tails and skewness alike. Beyond what was simulated the line goes on, so that an observation
out there is seen to be there. A column of fewer than three values stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from array_api_compat import array_namespace
from scipy import special as scipy_special

from spread_core.math._arrays import Array, interpolate

#: Standardised numbers beyond this are cut, lest a net be asked about what it never saw.
MOST = 10.0


def fit_columns(values: np.ndarray, num_knots: int = 256) -> dict[str, np.ndarray]:
    """
    How to carry columns over to normal scores.

    :param values: of shape (n, d), finite.
    :param num_knots: how closely.
    :return: arrays for :func:`to_scores`.
    """
    knots, scores = np.zeros((2, values.shape[1], num_knots))
    for number, column in enumerate(np.asarray(values, float).T):
        distinct, counts = np.unique(column, return_counts=True)
        z = scipy_special.ndtri((np.cumsum(counts) - counts / 2) / len(column))
        if len(distinct) < 3:  # a line of slope one
            distinct = np.array([distinct[0], distinct[0] + 1])
            z = np.array(distinct)
        elif len(distinct) > num_knots:
            at = np.searchsorted(z, np.linspace(z[0], z[-1], num_knots))
            kept = np.unique(at.clip(0, len(z) - 1))
            distinct, z = distinct[kept], z[kept]
        missing = (0, num_knots - len(z))
        knots[number] = np.pad(distinct, missing, mode="edge")
        scores[number] = np.pad(z, missing, mode="edge")
    return {"knots": np.float32(knots), "scores": np.float32(scores)}


def to_scores(values: Array, fitted: Mapping[str, Array]) -> Array:
    """
    Columns as normal scores.

    :param values: of shape batch + (d,).
    :param fitted: what :func:`fit_columns` returned.
    """
    xp = array_namespace(values)
    knots, scores = fitted["knots"], fitted["scores"]
    rows = xp.reshape(values, (-1, values.shape[-1]))
    first, last = knots[:, 0], knots[:, -1]
    slope = (scores[:, -1] - scores[:, 0]) / (last - first)
    beyond = xp.clip(rows - last, 0, None) + xp.clip(rows - first, None, 0)
    found = interpolate(rows, knots, scores) + slope * beyond
    return xp.reshape(found, values.shape)


def fit_scale(values: np.ndarray) -> dict[str, np.ndarray]:
    """
    Mean and standard deviation of columns; 1 for the deviation of one that never changes.

    :param values: of shape (n, d).
    """
    loc, scale = np.float64(values).mean(0), np.float64(values).std(0)
    return {"loc": np.float32(loc), "scale": np.float32(np.where(scale > 1e-6, scale, 1.0))}


def standardised(values: Array, fitted: Mapping[str, Array]) -> Array:
    """
    Columns of mean 0 and standard deviation 1, cut at :data:`MOST`.

    :param values: of shape batch + (d,).
    :param fitted: what :func:`fit_scale` returned.
    """
    xp = array_namespace(values)
    return xp.clip((values - fitted["loc"]) / fitted["scale"], -MOST, MOST)
