# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""A logistic regression of 100 coins on a stimulus: sufficient statistics, or the coins."""

from __future__ import annotations

import functools

import numpy as np
from scipy import special

from spread_core.validation import FloatArray
from studies.sbi_tasks.task import Prior, SbiTask

_NUM_COINS, _NUM_LAGS = 100, 9


@functools.cache
def design_matrix() -> FloatArray:
    """A constant, and a stimulus of white noise at nine lags, shape ``(100, 10)``.

    The stimulus is the benchmark's, from NumPy's first generator with seed 42.
    """
    stimulus = np.random.RandomState(42).randn(_NUM_COINS)
    matrix = np.zeros((_NUM_COINS, _NUM_LAGS + 1))
    matrix[:, 0] = 1
    for lag in range(_NUM_LAGS):
        matrix[lag:, lag + 1] = stimulus[: _NUM_COINS - lag]
    return matrix


def _precision() -> FloatArray:
    # Second differences of the nine weights are small, the later weights too.
    difference = np.eye(_NUM_LAGS) - np.eye(_NUM_LAGS, k=-1)
    root = difference @ difference + np.diag(np.sqrt(np.arange(_NUM_LAGS) / _NUM_LAGS))
    precision = np.zeros((_NUM_LAGS + 1, _NUM_LAGS + 1))
    precision[0, 0] = 0.5
    precision[1:, 1:] = root.T @ root
    return precision


def _coins(rng: np.random.Generator, theta: FloatArray) -> FloatArray:
    heads = special.expit(theta @ design_matrix().T)
    return (rng.random(heads.shape) < heads).astype(float)


def _statistics(rng: np.random.Generator, theta: FloatArray) -> FloatArray:
    return _coins(rng, theta) @ design_matrix()


_PRIOR = {
    "theta": Prior(
        "MultivariateNormal", {"loc": np.zeros(_NUM_LAGS + 1), "precision_matrix": _precision()}
    )
}
BERNOULLI_GLM = SbiTask("bernoulli_glm", _PRIOR, _NUM_LAGS + 1, _statistics)
BERNOULLI_GLM_RAW = SbiTask(
    "bernoulli_glm_raw",
    _PRIOR,
    _NUM_COINS,
    _coins,
    folder="bernoulli_glm",
    observation_file="observation_raw.csv",
)
