# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Gaussians of mean zero in two dimensions: critic, divergences, and a test of means."""

import numpy as np
import torch
from flax import linen
from torch import nn


class TorchQuadratic(nn.Module):
    """The logit of two Gaussians of mean 0, ``x A x + b``."""

    def __init__(self, matrix, bias):
        super().__init__()
        self.matrix = nn.Parameter(torch.as_tensor(matrix))
        self.bias = nn.Parameter(torch.as_tensor(bias))

    def forward(self, values, *args):
        x = values["x"]
        return ((x @ self.matrix) * x).sum(-1) + self.bias


class FlaxQuadratic(linen.Module):
    """Its twin."""

    @linen.compact
    def __call__(self, values, *args):
        x = values["x"]
        matrix = self.param("matrix", linen.initializers.zeros, (2, 2))
        return ((x @ matrix) * x).sum(-1) + self.param("bias", linen.initializers.zeros, ())


def log_ratio(data, model):
    """The matrix and the constant of log N(x; 0, data) / N(x; 0, model)."""
    matrix = 0.5 * (np.linalg.inv(model) - np.linalg.inv(data))
    return matrix, 0.5 * (np.linalg.slogdet(model)[1] - np.linalg.slogdet(data)[1])


def kl(p, q):
    return 0.5 * (np.trace(np.linalg.solve(q, p)) - len(p)) + log_ratio(p, q)[1]


def assert_mean(draws, truth, within):
    """The mean of draws is the truth, to four standard errors, which are small beside it."""
    draws = np.array(draws, dtype=float)
    error = 4 * draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert (error < within * np.abs(truth).max()).all(), (error, truth)
    np.testing.assert_array_less(abs(draws.mean(0) - truth), error)
