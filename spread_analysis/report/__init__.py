# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The HTML page that ``report`` of either backend writes."""

from __future__ import annotations

from spread_analysis.report.content import MetricRow, Report, compute_metrics, write_text
from spread_analysis.report.page import render
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


def write_report(report: Report) -> Report:
    """
    Fill in the metrics and write the page to ``report.path``, as a whole or not at all.

    :param report: all the rest.
    :return: the same.
    :raises OSError: if it cannot be written.
    :raises ImportError: if matplotlib, scikit-learn or ArviZ is missing.
    """
    report.metrics = compute_metrics(report)
    write_text(report.path, render(report))
    return report
