# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Are the elements of a plate alike? Simulations tell.

If they are, nothing is lost when other latents see a summary of the plate that does not depend on
their order. If they are not, as where each has a covariate of its own, such a summary loses which
is which, and a posterior that knows only the summary is too wide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def plates_told_apart(
    groups: list[Group],
    data: list[Group],
    values: Mapping[str, np.ndarray],
    depth: int,
    most_rows: int = 1000,
    most_numbers: int = 200,
) -> set[str]:
    """
    Plates of latents without data inside, whose elements the data outside tell apart.

    So it is where a program looks its latents up by index: each of them belongs to other parts of
    the data, which it could not find if all were alike.

    :param groups: of latents.
    :param data: of data.
    :param values: by site, of shape (simulations,) + site's.
    :param depth: number of dims for plates.
    :param most_rows: more rows than these are not looked at.
    :param most_numbers: more numbers of the data than these are not looked at.
    """
    inside = {plate for group in data for plate in group.plates}
    outside = [_rows(group.join(values, depth, 1)) for group in data]
    found: set[str] = set()
    for group in groups if outside else ():
        vectors = group.join(values, depth, 1)
        seen = np.concatenate(outside, 1)
        seen = seen[:, :: -(-seen.shape[1] // most_numbers)]
        good = np.isfinite(seen).all(1) & np.isfinite(_rows(vectors)).all(1)
        seen, vectors = seen[good][:most_rows], vectors[good][:most_rows]
        for plate, dim in group.dims.items():
            elements = np.moveaxis(vectors, dim - 1, 1)
            elements = elements.reshape(*elements.shape[:2], -1)
            if plate not in inside and _go_with(elements, seen):
                found.add(plate)
    return found


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def _go_with(elements: np.ndarray, seen: np.ndarray) -> bool:
    """Whether elements of a plate differ in how they go with other numbers of their row."""
    centred = _scores(seen, 1)
    centred = centred - centred.mean(0)

    def statistics(scores: np.ndarray) -> np.ndarray:
        products = np.einsum("nik,nm->ikm", scores, centred, optimize=True) / len(scores)
        return products.var(0).sum(-1)

    return _differ(elements, statistics)


def are_unlike(elements: np.ndarray, seed: int = 0) -> bool:
    """
    Whether the elements of a plate differ in location, in spread, or in how they go together.

    Exchangeable elements can be permuted within each simulation, and nothing changes: what is seen
    is compared with what is seen after such permutations.

    :param elements: of shape (simulations, elements, numbers).
    :param seed: of the permutations.
    """
    return _differ(elements, _statistics, seed)


def _differ(
    elements: np.ndarray, statistics: Callable[[np.ndarray], np.ndarray], seed: int = 0
) -> bool:
    rows, size, _ = elements.shape
    if size < 2 or rows < 20:
        return False
    rng = np.random.default_rng(seed)
    scores = _scores(elements, 2)
    own = statistics(scores)
    others = []
    for _ in range(_PERMUTATIONS):
        order = rng.permuted(np.tile(np.arange(size), (rows, 1)), axis=1)[..., None]
        others.append(statistics(np.take_along_axis(scores, order, axis=1)))
    mean, variance = np.mean(others, 0), np.var(others, 0)
    moves = variance > 1e-12 * mean**2
    if not moves.any():
        return False
    own, mean, variance = own[moves], mean[moves], variance[moves]
    # Sums of squares: close to a gamma distribution with these moments, skewed for few elements.
    p_values = stats.gamma.sf(own, mean**2 / variance, scale=variance / mean)
    return bool(p_values.min() * len(p_values) < _LEVEL)


def _scores(values: np.ndarray, lead: int) -> np.ndarray:
    """Normal scores along the leading dims, together."""
    rows = values.reshape(int(np.prod(values.shape[:lead])), -1)
    ranks = stats.rankdata(rows, axis=0)
    return special.ndtri(ranks / (len(rows) + 1)).reshape(values.shape)


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
