# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Tasks whose posterior is known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from spread_core.validation import FloatArray
from studies.sbi_tasks.task import Prior, SbiTask
from studies.simulator_tasks import TASKS as FIRST_TASKS

_VARIANCE = 0.1  # of x given theta, and of the Gaussian prior


def box(half: float, dim: int) -> dict[str, Prior]:
    """A prior that is uniform between -half and half in every dimension."""
    edge = np.full(dim, half)
    return {"theta": Prior("Uniform", {"low": -edge, "high": edge})}


def _linear_uniform_posterior(rng: np.random.Generator, x: FloatArray, num: int) -> FloatArray:
    # The prior is flat: every dimension is a Normal round x, cut at the box, drawn by inversion.
    std = np.sqrt(_VARIANCE)
    low, high = special.ndtr((-1 - x) / std), special.ndtr((1 - x) / std)
    return x + std * special.ndtri(low + (high - low) * rng.random((num, len(x))))


def _crescent(rng: np.random.Generator, num: int) -> Any:
    angle, radius = rng.uniform(-np.pi / 2, np.pi / 2, num), rng.normal(0.1, 0.01, num)
    return np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], -1)


def _moons(rng: np.random.Generator, theta: Any) -> Any:
    total, difference = theta[:, 0] + theta[:, 1], theta[:, 1] - theta[:, 0]
    shift = np.stack([-np.abs(total), difference], -1) / np.sqrt(2)
    return _crescent(rng, len(theta)) + shift


def _moons_posterior(rng: np.random.Generator, x: Any, num: int) -> Any:
    # Given its crescent's point, x leaves theta up to the sign of the sum; the prior is flat.
    kept = np.empty((0, 2))
    while len(kept) < num:
        total, difference = ((_crescent(rng, num) - x) * [1, -1] * np.sqrt(2)).T
        signed = total * rng.choice([-1, 1], num)
        theta = np.stack([signed - difference, signed + difference], -1) / 2
        kept = np.concatenate([kept, theta[(total >= 0) & (np.abs(theta) < 1).all(-1)]])
    return kept[:num]


_LINEAR, _MIXTURE = FIRST_TASKS["gaussian_linear"], FIRST_TASKS["gaussian_mixture"]
_STD = np.full(10, np.sqrt(_VARIANCE))
GAUSSIAN_LINEAR = SbiTask(
    "gaussian_linear",
    {"theta": Prior("Normal", {"loc": np.zeros(10), "scale": _STD})},
    10,
    _LINEAR.simulate,
    _LINEAR.draw_posterior,
)
GAUSSIAN_LINEAR_UNIFORM = SbiTask(
    "gaussian_linear_uniform", box(1, 10), 10, _LINEAR.simulate, _linear_uniform_posterior
)
GAUSSIAN_MIXTURE = SbiTask(
    "gaussian_mixture", box(10, 2), 2, _MIXTURE.simulate, _MIXTURE.draw_posterior
)
TWO_MOONS = SbiTask("two_moons", box(1, 2), 2, _moons, _moons_posterior)
