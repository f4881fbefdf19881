# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Data in plates with heavy tails.

Under a half-Cauchy scale the spread of a plate tells the scale, over orders of magnitude. That of
normal scores does not: they hardly grow any more out there. Such columns are carried over by asinh,
as heavy latents are, and the mean and the spread of the plate as it was are seen beside the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from spread_core.amortized.columns import fit_scale
from spread_core.amortized.layout import Group, Variable
from spread_core.amortized.summary import pooled
from spread_core.amortized.tails import fit_tails, tame
from spread_core.math._arrays import Array

# Beyond it the square of sinh leaves single precision.
_MOST = 20.0


def heavy_sites(
    groups: Iterable[Group], data: Mapping[str, Any], masks: Mapping[str, Any], depth: int
) -> set[str]:
    """
    Names of the data sites in plates that have heavy tails.

    :param groups: of data.
    :param data: values by site, of shape (simulations,) + site's; sites that are missing are not
        looked at.
    :param masks: what counts of them, by group.
    :param depth: number of dims for plates.
    """
    found = set()
    for group in groups:
        for variable in group.variables:
            if variable.frames and variable.name in data:
                own = variable.join(np.asarray(data[variable.name]), depth, 1)
                rows = counted(own, masks.get(group.key))
                rows = rows[np.isfinite(rows).all(1)]
                if (
                    len(rows)
                    and (fit_tails(rows, np.ones(rows.shape[1], bool))["spread"] > 0).any()
                ):
                    found.add(variable.name)
    return found


def counted(vectors: np.ndarray, mask: Any) -> np.ndarray:
    """
    The vectors that count, of shape (n, size).

    :param vectors: of shape (simulations,) + plates + (size,).
    :param mask: which count; None for all.
    """
    return vectors.reshape(-1, vectors.shape[-1]) if mask is None else vectors[np.asarray(mask)]


def fit_heavy(
    fitted: Mapping[str, np.ndarray], rows: np.ndarray, may: np.ndarray
) -> dict[str, np.ndarray]:
    """
    How to carry columns over, those with heavy tails by asinh.

    :param fitted: what :func:`~spread_core.amortized.columns.fit_columns` returned.
    :param rows: the values, of shape (n, size).
    :param may: which columns may be tamed, of shape (size,).
    :return: alike, and what tells how they were; a scale of 0 is that of other columns.
    """
    rows = rows.astype(fitted["knots"].dtype)
    tails = fit_tails(rows, may)
    found = fit_scale(tame(rows, tails))
    knots = (tame(fitted["knots"].T, tails) - found["loc"]) / found["scale"]
    is_heavy = tails["spread"] > 0
    scores = np.where(is_heavy[:, None], knots.T, fitted["scores"])
    own = {name: np.where(is_heavy, value, 0).astype(value.dtype) for name, value in found.items()}
    return {"knots": fitted["knots"], "scores": scores.astype(fitted["scores"].dtype), **own}


def heavy_columns(
    context: Any,
    group: Group,
    fitted: Mapping[str, Any],
    scores: Mapping[str, Array],
    masks: Mapping[str, Any],
) -> Array | None:
    """
    What a group sees of the spread of data with heavy tails, of shape lead + plates + (numbers,).

    :param context: latents and data.
    :param group: the latents.
    :param fitted: the standardisation.
    :param scores: data as they are carried over, by group.
    :param masks: which elements of the data count, by group; None for all.
    :return: None if there are no such data.
    """
    values, variables = {}, {}
    for data in context.data:
        names = context.heavy - context.embedded
        own = [v for v in data.variables if v.name in names]
        if own:
            fit = fitted["data"][data.key]
            parts = (scores[data.key], fit["loc"], fit["scale"])
            names = [v.name for v in own]
            values[data.key] = _as_it_was(*(data.select(part, names) for part in parts))
            variables[data.key] = own

    def pool(
        data: Group, level: frozenset[str], own: Array, mask: Any, axes: list[int]
    ) -> list[Array]:
        return _spread(own, mask, axes)

    def inside(data: Group, own: Array, mask: Any) -> list[Array]:
        return _spread_of_vectors(own, variables[data.key])

    return context.columns(group, values, masks, pool, inside) if values else None


def _as_it_was(scores: Array, loc: Array, scale: Array) -> Array:
    """Data with heavy tails in units of their spread; 0 for other columns."""
    xp = array_namespace(scores)
    return xp.sinh(xp.clip(scores * scale + loc, -_MOST, _MOST))


def _spread(values: Array, mask: Array | None, axes: list[int]) -> list[Array]:
    """Mean, by its asinh, and log standard deviation of what is inside of plates."""
    mean, log_sd = pooled(values, mask, axes)[:2]
    return [array_namespace(mean).asinh(mean), log_sd]


def _spread_of_vectors(values: Array, variables: Iterable[Variable]) -> list[Array]:
    """Alike, over plates that are parts of one vector, as their elements differ."""
    xp, start = array_namespace(values), 0
    found: list[Array] = []
    for variable in variables:
        own = values[..., start : start + variable.size]
        start += variable.size
        if variable.loose:
            count = math.prod(size for _, size in variable.loose)
            shape = (*own.shape[:-1], count, own.shape[-1] // count)
            parts = _spread(xp.reshape(own, shape), None, [-2])
            found += [part[..., 0, :] for part in parts]
    return found
