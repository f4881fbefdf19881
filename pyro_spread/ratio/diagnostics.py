# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Diagnostics of a critic, from its logits at samples that it was not trained on."""

from __future__ import annotations

from typing import Any

import torch

from spread_analysis import CriticReport
from spread_analysis import critic_report as _critic_report
from spread_core.validation import as_host


def critic_report(
    logits_p: torch.Tensor,
    logits_q: torch.Tensor,
    pi: float = 0.5,
    num_bins: int = 10,
    weights_p: torch.Tensor | None = None,
    weights_q: torch.Tensor | None = None,
) -> CriticReport:
    """
    Accuracy, cross-entropy, calibration, saturation and effective sample size of a critic.

    :param logits_p: logits at held-out data, of any shape.
    :param logits_q: logits at fresh draws of the model, of any shape.
    :param pi: class prior the critic was trained with.
    :param num_bins: number of bins of the calibration curve.
    :param weights_p: weights of the data, of the shape of ``logits_p``.
    :param weights_q: weights of the draws, of the shape of ``logits_q``.
    :return: see :class:`spread_analysis.CriticReport`.
    """
    arrays: list[Any] = [
        None if value is None else as_host(value).ravel()
        for value in (logits_p, logits_q, weights_p, weights_q)
    ]
    return _critic_report(arrays[0], arrays[1], pi, num_bins, arrays[2], arrays[3])
