# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Ranks of truths among draws, on which every check of a posterior rests."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spread_core.messages import calibration
from spread_core.validation import FloatArray, as_float

Ranks = NDArray[np.int64]


def simulation_ranks(
    truth: ArrayLike, draws: ArrayLike, seed: int = 0, kept: ArrayLike | None = None
) -> Ranks:
    """
    How many draws lie below the truth; ties, as discrete latents have them, are broken at random.

    :param truth: the latents that made the data, any shape.
    :param draws: draws given the data, of shape (num_draws,) + that of ``truth``.
    :param seed: of the ties.
    :param kept: elements that count, of the shape of ``truth``; None is all. Others have rank 0.
    :return: ranks in 0, ..., num_draws, of the shape of ``truth``.
    :raises ValueError: if shapes do not fit or an entry that counts is NaN.

        >>> simulation_ranks([0.5, 9.0], [[0.0, 1.0], [1.0, 2.0], [0.2, 3.0]])
        array([2, 3])
    """
    values, samples = as_truth_and_draws(truth, draws, "truth", "draws")
    if kept is not None:
        counts = np.broadcast_to(np.asarray(kept, bool), values.shape)
        values, samples = np.where(counts, values, -1.0), np.where(counts, samples, 0.0)
    if np.isnan(values).any() or np.isnan(samples).any():
        raise ValueError("`truth` and `draws` must not hold NaN, which has no rank.")
    below = (samples < values).sum(0)
    ties = (samples == values).sum(0)
    rng = np.random.default_rng(seed)
    ranks: Ranks = below + rng.integers(0, ties, endpoint=True)
    return ranks


def as_truth_and_draws(
    truth: ArrayLike, draws: ArrayLike, name: str, name_draws: str
) -> tuple[FloatArray, FloatArray]:
    """
    Return both as float64 arrays.

    :param truth: any shape.
    :param draws: of shape (num_draws,) + that of ``truth``.
    :param name: of ``truth``, for messages.
    :param name_draws: of ``draws``.
    :raises ValueError: if shapes do not fit.
    """
    values, samples = as_float(truth, name), as_float(draws, name_draws)
    if samples.ndim == 0 or samples.shape[1:] != values.shape or len(samples) == 0:
        raise ValueError(calibration.draws_shape(name_draws, values.shape, samples.shape))
    return values, samples
