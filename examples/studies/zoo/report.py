# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The table of the zoo, in Markdown, and what it says."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from spread_analysis.evaluation import SampleQuality, mean_and_error
from studies.zoo import messages
from studies.zoo.kept import RESULTS_FILE
from studies.zoo.page import MISSING, SUMMARY_FILE, write_docs
from studies.zoo.rows import ROWS, Row

#: Stands for what a system does not have.
NONE = "-"
TABLE_FILE = "table.md"
COLOURS = ("#1f5fa8", "#d1662a")
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
    Describe the comparison in words.

    :param results: from :func:`studies.zoo.run_rows`.
    """
    seeds = (
        f"Mean ± standard error of {results['num_seeds']} seed(s)."
        if results["num_seeds"]
        else "Mean ± standard error of 3 seeds for games with a critic; one seed for all others."
    )
    name = "" if results["dataset"] == "digits" else f"{results['dataset']}: "
    text = f"""
        {name}{results["num_train"]} training images, {results["num_held_out"]} held out. log p(x)
        is the mean over held-out images in nats, of whole-number pixels: exact, or a lower bound
        (≥). [In brackets]: a lower bound on images with spread noise, which compares with no other
        row. {results["num_samples"]} samples against held-out images: MMD² of the pixels; Fréchet
        distance, precision and recall in {results["features"]}. {seeds}
    """
    return " ".join(text.split())


def zoo_table(all_results: Sequence[Mapping[str, Any]], rows: Sequence[str] | None = None) -> str:
    """
    One Markdown table of all rows, those of the backends under each other, and of real images.

    :param all_results: results of :func:`studies.zoo.run_rows`, one per backend.
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
    lines.append((_real_images(all_results[0]), "", "", "", *quality, ""))
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


def write_report(
    output: Path,
    folders: Mapping[str, Path],
    systems: Collection[str],
    docs: str | Path | None = None,
) -> str:
    """
    One table and one picture of all backends, from the numbers that each has written.

    :param output: folder to write to.
    :param folders: of each backend, the folder of its numbers.
    :param systems: those whose rows must be there.
    :param docs: the documentation's folder, to write its results too; None leaves them.
    :return: the text that was written.
    :raises SystemExit: if a backend has left no numbers.
    """
    all_results = []
    for folder in folders.values():
        path = folder / RESULTS_FILE
        if not path.is_file():
            raise SystemExit(messages.no_results(path))
        all_results.append(json.loads(path.read_text()))
    rows = [name for name, row in ROWS.items() if row.system in systems]
    text = _report(all_results, rows)
    (output / TABLE_FILE).write_text(text + "\n")
    (output / RESULTS_FILE).write_text(json.dumps(all_results, indent=1))
    plot_summary(all_results).figure.savefig(output / SUMMARY_FILE, dpi=150)
    if docs is not None:
        # Of some systems, the rows that were run: the page may have the others.
        told = text if len(rows) == len(ROWS) else _report(all_results, None)
        write_docs(told, output, folders, Path(docs), all_results[0]["dataset"])
    return text


def _real_images(results: Mapping[str, Any]) -> str:
    # The digits are too few to reserve some that no model is trained on.
    return "real images (training)" if results["dataset"] == "digits" else "real images"


def _report(all_results: Sequence[Mapping[str, Any]], rows: Sequence[str] | None) -> str:
    return f"{describe(all_results[0])}\n\n{zoo_table(all_results, rows)}"


def plot_summary(all_results: Sequence[Mapping[str, Any]]) -> Any:
    """
    Fréchet distance and log-likelihood of every row, a colour for each backend.

    :param all_results: results of :func:`studies.zoo.run_rows`, one per backend.
    :return: the axes of the Fréchet distance; ``.figure`` has both.
    """
    present = {name for results in all_results for name in results["rows"]}
    names = [name for name in ROWS if name in present]
    figure = Figure(figsize=(10, 1.2 + 0.26 * len(names)), layout="constrained")
    # No panel where no row has a number for it.
    panels = 2 if any(ROWS[name].measure in ("exact", "bound") for name in names) else 1
    left, *right = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for results, colour in zip(all_results, COLOURS, strict=False):
        for place, name in enumerate(names):
            runs = results["rows"].get(name, [])
            _plot_values(left, [run["frechet"] for run in runs], place, "o", colour)
            for axes in right if ROWS[name].measure in ("exact", "bound") else ():
                marker = "o" if ROWS[name].measure == "exact" else ">"
                _plot_values(axes, [run["log_likelihood"] for run in runs], place, marker, colour)
        left.plot([], [], "o", color=colour, label=results["backend"])
    real = all_results[0]["real"]["frechet"]
    label = _real_images(all_results[0])
    left.axvline(real, color="#5c5c5c", linestyle=":", label=label)
    left.set_yticks(range(len(names)), [ROWS[name].title for name in names], fontsize=8)
    left.set_ylim(len(names) - 0.5, -0.5)
    left.set(xscale="log", xlabel="Fréchet distance, smaller is better")
    # Else powers of ten, one over the other.
    left.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(fontsize=8, loc="outside upper center", ncols=3, frameon=False)
    for axes in right:
        axes.set_xlabel("log p(x), nats per image; arrows are lower bounds")
        for place, name in enumerate(names):
            if ROWS[name].measure not in ("exact", "bound"):
                _say_why_empty(axes, ROWS[name], place)
    for axes in (left, *right):
        axes.grid(axis="both", alpha=0.2)
    return left


def _plot_values(
    axes: Any, values: Sequence[float | None], place: int, marker: str, colour: str
) -> None:
    known = [value for value in values if value is not None]
    axes.plot(known, [place] * len(known), marker, color=colour, alpha=0.8)


def _say_why_empty(axes: Any, row: Row, place: int) -> None:
    # A spread bound has another scale: among the others it would say something that is not so.
    why = "of images with noise: not comparable" if row.measure == "spread" else "has none"
    options = {"fontsize": 7, "color": "#5c5c5c", "va": "center"}
    axes.text(0.02, place, why, transform=axes.get_yaxis_transform(), **options)
