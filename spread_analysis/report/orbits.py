# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Tell a curve that orbits from one that settles."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# A curve that orbits swings by such a share of its level and of where it began, and crosses its
# mean this often. Neighbours in it are alike: by von Neumann's ratio, which is 1 for independent
# values.
_OF_LEVEL, _OF_START = 0.25, 0.1
_LEAST_CROSSINGS, _MOST_NOISE, _FEWEST_POINTS = 3, 0.4, 16


def orbits(curve: ArrayLike, least: float = 0.0) -> bool:
    """
    Whether the second half of a curve oscillates widely and slowly about a level.

    Noise of minibatches swings too, but without memory: means of blocks of every length from one to
    a twentieth of the half are looked at, in which an orbit shows as neighbours that are alike.

    :param curve: values of a divergence, step by step.
    :param least: swings below this are none.

        >>> steps = np.arange(1000)
        >>> orbits(1 + 0.5 * np.sin(steps / 25)), orbits(np.exp(-steps / 100))
        (True, False)
    """
    values = np.asarray(curve, np.float64)
    values = values[np.isfinite(values)]
    half = values[len(values) // 2 :]
    if len(half) < _FEWEST_POINTS:
        return False
    start = abs(float(values[: max(1, len(values) // 20)].mean()))
    limit = max(_OF_LEVEL * abs(float(np.median(half))), _OF_START * start, least)
    length = 1
    while len(half) // length >= _FEWEST_POINTS:
        blocks = half[len(half) % length :].reshape(-1, length).mean(1)
        places = np.arange(len(blocks))
        rest = blocks - np.polyval(np.polyfit(places, blocks, 1), places)
        low, high = np.quantile(rest, [0.1, 0.9])
        crossings = int((np.diff(np.sign(rest)) != 0).sum())
        noise = np.square(np.diff(rest)).mean() / (2 * rest.var()) if rest.any() else 1.0
        if high - low > limit and crossings >= _LEAST_CROSSINGS and noise < _MOST_NOISE:
            return True
        length *= 2
    return False
