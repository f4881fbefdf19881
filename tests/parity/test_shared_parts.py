# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Parts that both backends share: logits of two sides, reports, documentation."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spread_analysis import EvidenceReport
from spread_core.logits import Logits
from spread_core.shared_docs import SharedDocs


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


def test_what_is_shared_by_both_backends_is_documented_once_and_own_params_come_last():
    class Shared(SharedDocs):
        """
        First line.

        Shared text.

        **References**

        [1] A paper.

        :param a: shared.
        """

        __module__ = "spread_core.losses.example"

    class Own(Shared):
        """
        First line.

            >>> 1 + 1
            2

        In this backend only.

        :param b: own.
        """

    assert inspect.cleandoc(Own.__doc__) == (
        "First line.\n\n    >>> 1 + 1\n    2\n\nShared text.\n\nIn this backend only.\n\n"
        "**References**\n\n[1] A paper.\n\n:param a: shared.\n:param b: own."
    )


def test_a_report_of_two_critics_at_the_same_draws():
    report = EvidenceReport.from_draws([3.0, 5.0], torch.tensor([2.0, 2.0]))
    assert (report.estimate, report.fresh_estimate, report.gap) == (4.0, 2.0, 2.0)
    assert report.standard_error == 1.0  # gaps of 1 and 3
    assert report.num_draws == 2
