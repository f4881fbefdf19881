# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The HTML page that ``report`` of either backend writes."""

from __future__ import annotations

from spread_analysis.report.content import MetricRow, Report
from spread_analysis.report.page import write_report
from spread_analysis.report.words import CriticLogits, describe
from spread_core.loss_words import NOT_A_BOUND, LossWords

__all__ = [
    "NOT_A_BOUND",
    "CriticLogits",
    "LossWords",
    "MetricRow",
    "Report",
    "describe",
    "write_report",
]
