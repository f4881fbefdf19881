# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Simple likelihood, complex posterior: four points in the plane, alone or among distractors."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from spread_core.validation import FloatArray
from studies.sbi_tasks.flat import box
from studies.sbi_tasks.task import SbiTask

_NUM_POINTS, _NUM_DISTRACTORS, _NUM_COMPONENTS = 4, 92, 20
_JITTER = 1e-6  # the benchmark adds it to the variances


def _slcp(rng: np.random.Generator, theta: FloatArray) -> FloatArray:
    first, second = np.square(theta[:, 2]), np.square(theta[:, 3])
    covariance = np.tanh(theta[:, 4]) * first * second
    # The Cholesky factor of [[first², covariance], [covariance, second²]] with jitter, by hand.
    std = np.sqrt(first**2 + _JITTER)
    slope = covariance / std
    rest = np.sqrt(second**2 + _JITTER - slope**2)
    e = rng.standard_normal((2, len(theta), _NUM_POINTS))
    x = theta[:, [0]] + std[:, None] * e[0]
    y = theta[:, [1]] + slope[:, None] * e[0] + rest[:, None] * e[1]
    return np.stack([x, y], -1).reshape(len(theta), 2 * _NUM_POINTS)


@functools.cache
def distractors() -> tuple[FloatArray, FloatArray, Any]:
    """Locations and factors of the Student t's, and the order of the columns.

    The benchmark made them once, by NumPy's first generator with seed 42.
    """
    rng, size = np.random.RandomState(42), _NUM_DISTRACTORS
    locations = np.array([15 * rng.normal(size=size) for _ in range(_NUM_COMPONENTS)])
    factors = [
        3 * (np.tril(rng.normal(size=(size, size))) + np.diag(np.exp(rng.normal(size=size))))
        for _ in range(_NUM_COMPONENTS)
    ]
    return locations, np.array(factors), rng.permutation(size + 2 * _NUM_POINTS)


def _slcp_distractors(rng: np.random.Generator, theta: FloatArray) -> FloatArray:
    x = _slcp(rng, theta)
    locations, factors, order = distractors()
    noise = rng.standard_normal((len(theta), _NUM_DISTRACTORS))
    noise /= np.sqrt(rng.chisquare(2, (len(theta), 1)) / 2)  # two degrees of freedom
    component = rng.integers(_NUM_COMPONENTS, size=len(theta))
    for k in range(_NUM_COMPONENTS):
        rows = component == k
        noise[rows] = locations[k] + noise[rows] @ factors[k].T
    return np.concatenate([x, noise], -1)[:, order]


SLCP = SbiTask("slcp", box(3, 5), 8, _slcp)
SLCP_DISTRACTORS = SbiTask(
    "slcp_distractors",
    box(3, 5),
    100,
    _slcp_distractors,
    folder="slcp",
    observation_file="observation_distractors.csv",
)
