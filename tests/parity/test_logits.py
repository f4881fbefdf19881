# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The logits of two sides, of either backend's arrays."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spread_core.logits import Logits


@pytest.mark.parametrize("array", [torch.tensor, jnp.array, np.array])
def test_range_and_accuracy(array):
    logits = Logits(array([1.0, -2.0, 3.0]), array([-0.5, 4.0]))
    assert [float(each) for each in logits.range()] == [-2.0, 4.0]
    assert float(logits.accuracy()) == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("array", [torch.tensor, jnp.array, np.array])
def test_each_side_has_its_own_weights(array):
    logits = Logits(array([1.0, -2.0]), array([-0.5, 4.0]), array([3.0, 1.0]), array([1.0, 0.0]))
    assert float(logits.accuracy()) == pytest.approx((3 / 4 + 1) / 2)


def test_sides_may_be_called_data_and_model():
    logits = Logits(*np.arange(4.0))
    assert logits == (logits.data, logits.model, logits.data_weights, logits.model_weights)
