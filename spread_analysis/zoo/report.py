# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The table of the zoo, in Markdown, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spread_analysis.evaluation import SampleQuality, mean_and_error
from spread_analysis.zoo.rows import ROWS, Row

#: Stands for what a system does not have.
NONE = "-"
#: Stands for a run that has failed, or was not made.
MISSING = "missing"
_HEADER = (
    "log p(x)",
    "importance-weighted",
    "MMD² x 1000",
    "Fréchet",
    "precision",
    "recall",
    "seconds",
)
_DIGITS = {"log_likelihood": 1, "importance_weighted": 1, "mmd2": 2, "frechet": 2, "seconds": 0}


def describe(results: Mapping[str, Any]) -> str:
    """
    What was compared with what, in words.

    :param results: from :func:`spread_analysis.zoo.run_rows`.
    """
    text = f"""
        {results["num_train"]} training images, {results["num_held_out"]} held out. log p(x) is the
        mean over held-out images in nats, of whole-number pixels: exact, or a lower bound (≥).
        [In brackets]: a lower bound on images with spread noise, which compares with no other row.
        {results["num_samples"]} samples against held-out images: MMD² of the pixels; Fréchet
        distance, precision and recall in {results["features"]}. Mean ± standard error of
        {results["num_seeds"]} seed(s).
    """
    return " ".join(text.split())


def zoo_table(all_results: Sequence[Mapping[str, Any]], rows: Sequence[str] | None = None) -> str:
    """
    One Markdown table of all rows, those of the backends under each other, and of real images.

    :param all_results: results of :func:`spread_analysis.zoo.run_rows`, one per backend.
    :param rows: names of the rows that must be there: one that is not says so. None takes those
        that any of the results has.
    """
    present = {name for results in all_results for name in results["rows"]}
    wanted = [name for name in ROWS if name in (present if rows is None else rows)]
    lines: list[tuple[str, ...]] = [("system", "backend", *_HEADER)]
    for name in wanted:
        for results in all_results:
            cells = row_cells(ROWS[name], results["rows"].get(name, []))
            lines.append((ROWS[name].title, results["backend"], *cells))
    real = all_results[0]["real"]
    quality = [_cell([real[key]], key) for key in ("mmd2", "frechet", "precision", "recall")]
    lines.append(("real images (training)", "", "", "", *quality, ""))
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|" + "---|" * 2 + "---:|" * len(_HEADER))
    return "\n".join(text)


def row_cells(row: Row, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    The cells of a row, from its log-likelihood to its seconds.

    :param row: the row.
    :param runs: its runs, one per seed; none if it was not trained.
    """
    if not runs:
        return [MISSING] * len(_HEADER)
    values = {key: [run[key] for run in runs] for key in (*SampleQuality._fields, *_DIGITS)}
    likelihood, weighted = NONE, NONE
    if row.measure is not None:
        likelihood = _marked(row, _cell(values["log_likelihood"], "log_likelihood"))
        if any(value is not None for value in values["importance_weighted"]):
            weighted = _marked(row, _cell(values["importance_weighted"], "importance_weighted"))
    rest = ("mmd2", "frechet", "precision", "recall", "seconds")
    return [likelihood, weighted, *(_cell(values[key], key) for key in rest)]


def _marked(row: Row, cell: str) -> str:
    if cell == MISSING:
        return cell
    return {"exact": cell, "bound": f"≥ {cell}", "spread": f"[{cell}]"}[str(row.measure)]


def _cell(values: Sequence[float | None], key: str) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return MISSING
    factor = 1000.0 if key == "mmd2" else 1.0
    return mean_and_error(factor * value for value in known).format(_DIGITS.get(key, 2))
