# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Which of many numbers that describe the data have nothing to do with the latents.

A net that sees a hundred numbers, of which eight matter, fits noise. Each number is tested by
itself first (sure independence screening, Fan and Lv 2008, arXiv:math/0612857): whether it, its
square or its size goes with those of a latent. Numbers that go with such numbers count as well,
and so on: covariates are independent of the coefficients, but not of the responses. Last, whether
the product of two of the rest goes with a latent, as it does where that is a correlation.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

#: More numbers than these are screened.
MANY = 30

#: More are not: of the products of two there would be too many.
MOST = 200

#: By what numbers are multiplied that have nothing to do with the latents. It is not 0, so that
#: training can still take them up.
FAINT = 0.03

_LEVEL = 0.01


def weights(latents: np.ndarray, numbers: np.ndarray, most_rows: int = 10_000) -> np.ndarray:
    """
    By what to multiply numbers before nets see them: 1, or :data:`FAINT`.

    Where those that seem to have nothing to do with the latents still go with them more than chance
    allows, all together, all are kept: many faint hints are as good as a clear one.

    :param latents: of shape (n, D).
    :param numbers: of shape (n, V).
    :param most_rows: more rows than these are not looked at.
    :return: of shape (V,).
    """
    count = numbers.shape[1]
    if not MANY < count <= MOST:
        return np.ones(count, numbers.dtype)
    step = -(-len(numbers) // most_rows)
    of_latents, of_numbers = _shapes(latents[::step]), _shapes(numbers[::step])
    rows = of_numbers.shape[1]
    tests = 9 * count * (count + latents.shape[1])
    line = stats.chi2.isf(_LEVEL / tests, 1) / rows
    kept, new = np.zeros(count, bool), _strongest(of_latents, of_numbers) > line
    while new.any():
        kept |= new
        linked = _strongest(of_numbers[..., new], of_numbers) > line
        new = linked & ~kept
    rest = of_numbers[0][:, ~kept]
    kept[~kept] = _goes_in_pairs(of_latents, rest)
    rest = of_numbers[0][:, ~kept]
    hints = rows * ((of_latents[0].T @ rest / rows) ** 2).mean() if rest.size else 0.0
    faint = FAINT if kept.any() and hints < 1.25 else 1.0
    return np.where(kept, 1.0, faint).astype(numbers.dtype)


def _goes_in_pairs(of_latents: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which numbers have a product with another one that goes with a latent, of shape (V,)."""
    rows, count = numbers.shape
    found = np.zeros(count, bool)
    tests = max(1, 3 * of_latents.shape[2] * count * (count - 1) // 2)
    line = stats.chi2.isf(_LEVEL / tests, 1) / rows
    for one in range(count - 1):
        products = numbers[:, one : one + 1] * numbers[:, one + 1 :]
        products = _standardised(products)
        strongest = np.zeros(products.shape[1])
        for shape in of_latents:
            strongest = np.maximum(strongest, ((shape.T @ products / rows) ** 2).max(0))
        pairs = strongest > line
        found[one] |= pairs.any()
        found[one + 1 :] |= pairs
    return found


def _shapes(values: np.ndarray) -> np.ndarray:
    """Columns, their squares and their sizes, standardised, of shape (3, n, columns)."""
    scale = np.maximum(values.std(0), 1e-9)
    own = np.clip((values - values.mean(0)) / scale, -4, 4).astype(np.float64)
    return np.stack([_standardised(shape) for shape in (own, own * own, np.abs(own))])


def _standardised(columns: np.ndarray) -> np.ndarray:
    centred = columns - columns.mean(0)
    return centred / np.maximum(centred.std(0), 1e-9)


def _strongest(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The largest squared correlation of each column of the others, of shape (columns,)."""
    rows = others.shape[1]
    found = np.zeros(others.shape[2])
    for one in ones:
        for other in others:
            found = np.maximum(found, ((one.T @ other / rows) ** 2).max(0))
    return found
