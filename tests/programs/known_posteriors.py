# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Draws of a Gaussian posterior that is known, and of others that are wrong in one way each."""

from typing import NamedTuple

import numpy as np

DIM = 3
LOADING = np.array([[1.0, 0.4, -0.7, 0.2], [0.8, 0.6, -0.5, -0.1], [0.6, -0.5, 0.9, 0.8]])
COVARIANCE = np.linalg.inv(np.eye(DIM) + LOADING @ LOADING.T)
FACTOR = np.linalg.cholesky(COVARIANCE)
DEVIATION = np.sqrt(np.diag(COVARIANCE))

# What is done to standard normal noise, given posterior means and data.
WRONG = {
    "narrow": lambda mean, e, x: mean + 0.8 * e @ FACTOR.T,
    "wide": lambda mean, e, x: mean + 1.25 * e @ FACTOR.T,
    "biased": lambda mean, e, x: mean + 0.3 * DEVIATION + e @ FACTOR.T,
    "uncorrelated": lambda mean, e, x: mean + e * DEVIATION,
    "ignores x": lambda mean, e, x: e,
    "one latent narrow": lambda mean, e, x: mean + e @ FACTOR.T * [0.7, 1.0, 1.0],
    "biased by x": lambda mean, e, x: mean + e @ FACTOR.T + 0.25 * DEVIATION * np.sign(x[:, :1]),
}


class Case(NamedTuple):
    """theta ~ N(0, 1), x ~ N(theta A, 1), draws given x, and log densities of a normal fit."""

    truths: np.ndarray
    draws: np.ndarray
    data: np.ndarray
    log_prob_truth: np.ndarray
    log_prob_draws: np.ndarray


def case(wrong=None, num=1000, num_draws=49, seed=0):
    """A Case whose draws are wrong in a way that WRONG names, or exact."""
    rng = np.random.default_rng(seed)
    truths = rng.standard_normal((num, DIM))
    data = truths @ LOADING + rng.standard_normal((num, LOADING.shape[1]))
    mean = data @ LOADING.T @ COVARIANCE
    noise = rng.standard_normal((num_draws, num, DIM))
    draws = mean + noise @ FACTOR.T if wrong is None else WRONG[wrong](mean, noise, data)
    # The density that such draws have: normal, with the moments that they have around the mean.
    centre = draws.mean(0) if wrong in ("biased", "ignores x", "biased by x") else mean
    residual = (draws - centre).reshape(-1, DIM)
    precision = np.linalg.inv(residual.T @ residual / len(residual))

    def log_prob(theta):
        off = theta - centre
        return -0.5 * np.einsum("...i,ij,...j->...", off, precision, off)

    return Case(truths, draws, data, log_prob(truths), log_prob(draws))
