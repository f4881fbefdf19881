# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Are the elements of a plate alike? Simulations tell.

If they are, nothing is lost when other latents see a summary of the plate that does not depend on
their order. If they are not, as where each has a covariate of its own, such a summary loses which
is which, and a posterior that knows only the summary is too wide.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import special, stats

from spread_core.amortized.layout import Group

_PERMUTATIONS = 50
# Of elements that are alike, one plate in so many is taken for one whose elements differ.
_LEVEL = 1e-6


def unlike_plates(
    groups: list[Group], data: Mapping[str, np.ndarray], depth: int, most_rows: int = 1000
) -> set[str]:
    """
    Plates whose elements differ.

    :param groups: of data.
    :param data: values by site, of shape (simulations,) + site's; groups of which some are missing
        are not looked at.
    :param depth: number of dims for plates.
    :param most_rows: more rows than these are not looked at.
    """
    found = set()
    for group in groups:
        if not all(v.name in data for v in group.variables):
            continue
        vectors = group.join({v.name: data[v.name] for v in group.variables}, depth, 1)
        vectors = vectors[np.isfinite(vectors).reshape(len(vectors), -1).all(1)][:most_rows]
        for plate, dim in group.dims.items():
            elements = np.moveaxis(vectors, dim - 1, 1)
            if are_unlike(elements.reshape(*elements.shape[:2], -1)):
                found.add(plate)
    return found


def are_unlike(elements: np.ndarray, seed: int = 0) -> bool:
    """
    Whether the elements of a plate differ in location, in spread, or in how they go together.

    Exchangeable elements can be permuted within each simulation, and nothing changes: what is seen
    is compared with what is seen after such permutations.

    :param elements: of shape (simulations, elements, numbers).
    :param seed: of the permutations.
    """
    rows, size, _ = elements.shape
    if size < 2 or rows < 20:
        return False
    rng = np.random.default_rng(seed)
    ranks = stats.rankdata(elements.reshape(rows * size, -1), axis=0)
    scores = special.ndtri(ranks / (rows * size + 1)).reshape(elements.shape)
    own = _statistics(scores)
    others = []
    for _ in range(_PERMUTATIONS):
        order = rng.permuted(np.tile(np.arange(size), (rows, 1)), axis=1)[..., None]
        others.append(_statistics(np.take_along_axis(scores, order, axis=1)))
    mean, variance = np.mean(others, 0), np.var(others, 0)
    moves = variance > 1e-12 * mean**2
    if not moves.any():
        return False
    own, mean, variance = own[moves], mean[moves], variance[moves]
    # Sums of squares: close to a gamma distribution with these moments, skewed for few elements.
    p_values = stats.gamma.sf(own, mean**2 / variance, scale=variance / mean)
    return bool(p_values.min() * len(p_values) < _LEVEL)


def _statistics(scores: np.ndarray) -> np.ndarray:
    location = scores.mean(0).var(0)
    spread = np.abs(scores).mean(0).var(0)
    found = [location, spread]
    if scores.shape[1] > 2:
        centred = scores - scores.mean(0)
        products = np.einsum("nik,njk->kij", centred, centred) / len(scores)
        pairs = np.triu_indices(scores.shape[1], 1)
        found.append(products[:, pairs[0], pairs[1]].var(1))
    return np.concatenate(found)
