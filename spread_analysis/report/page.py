# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Render a report as one HTML page without external resources; ``templates`` has its text."""

from __future__ import annotations

import math
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spread_analysis.history import History
from spread_analysis.reference.divergences import class_entropy
from spread_analysis.report import figures, rendering
from spread_analysis.report.content import Report, compute_metrics, is_lost, orbiting, tiles
from spread_analysis.report.words import LossWords
from spread_core.validation import FloatArray

_SECTIONS = {
    "curves": "Loss and divergence",
    "samples": "Samples against data",
    "metrics": "Metrics",
    "calibration": "Calibration of the critic",
    "overlap": "Overlap of supports",
    "posterior": "Posterior",
    "warnings": "Warnings",
    "settings": "Settings, seeds and versions",
}
_LOST = {
    "precision": "samples lie where there are no data",
    "recall": "the model leaves out part of the data, as one does that has dropped modes",
}


class Picture(NamedTuple):
    """
    A picture of the page.

    :param png: the PNG in base64; empty if there is none.
    :param trouble: why it could not be drawn; empty if it could.
    """

    png: str = ""
    trouble: str = ""


def render(report: Report) -> str:
    """
    The page as text.

    :param report: with its metrics.
    """
    data, samples, columns = report.joined()
    history, words = report.history or History(), report.words
    lost = [
        (row, _LOST[row.name])
        for row in report.metrics
        if row.name in _LOST and is_lost(report, row) and not math.isnan(row.model)
    ]
    critics = [(name, logits, logits.check(words)) for name, logits in report.logits.items()]
    return rendering.render(
        "page.html",
        sections=_SECTIONS,
        report=report,
        words=words,
        tiles=tiles(report),
        orbits=orbiting(report),
        history=history,
        panels=_panels(history, words, report.losses is not None),
        data=data,
        samples=samples,
        columns=columns,
        num_bad_samples=int((~np.isfinite(samples).all(1)).sum()),
        pixel_range=_pixel_range(report.data.get(report.image_site or "", np.empty(0))),
        lost=lost,
        critics=critics,
        latents_caption=_latents_caption(report.latents, report.latents_of),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        draw=_draw,
        class_entropy=class_entropy,
        max=max,
        max_marginals=figures.MAX_MARGINALS,
    )


def write_report(report: Report) -> Report:
    """
    Fill in the metrics and write the page to ``report.path``, as a whole or not at all.

    :param report: everything except the metrics.
    :return: the same report.
    :raises OSError: if the page cannot be written.
    :raises ImportError: if a package of the ``analysis`` extra is missing.
    """
    report.metrics = compute_metrics(report)
    write_text(report.path, render(report))
    return report


def _draw(name: str, *args: Any) -> Picture:
    """Draw a picture with a function of ``figures``; one that fails does not stop the report."""
    try:
        return Picture(png=getattr(figures, name)(*args))
    except (ValueError, np.linalg.LinAlgError) as error:
        return Picture(trouble=str(error))


def _panels(history: History, words: LossWords, has_losses: bool) -> list[tuple[str, list[str]]]:
    """Which numbers of a history are drawn together: the label of each panel, and their names."""
    first = [name for name in history if name == "divergence"]
    if not first and not has_losses:
        first = [name for name in history if name == "loss"]
    panels = [
        (words.label, first),
        ("nats", [n for n in history if n.startswith(("critic_divergence", "log_ratio_gap"))]),
        ("share", [n for n in history if n.startswith(("critic_accuracy", "critic_sat"))]),
    ]
    shown = {"loss", *(name for _, names in panels for name in names)}
    panels += [("", [name]) for name in history if name not in shown]
    return [(label, names) for label, names in panels if names]


def _pixel_range(images: FloatArray) -> tuple[float, float]:
    """The values that are drawn black and white: the least and the largest finite ones."""
    finite = images[np.isfinite(images)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (low, high) if low < high else (low, low + 1.0)


def _latents_caption(latents: dict[str, FloatArray], latents_of: str) -> str:
    """What the picture of the posterior shows."""
    sizes = {name: math.prod(value.shape[1:]) for name, value in latents.items()}
    sites = ", ".join(f"{name} ({size})" for name, size in sizes.items())
    total = sum(sizes.values())
    caption = f"Draws of the guide at {sites}: {latents_of}."
    if total > figures.MAX_LATENTS:
        caption += f" The first {figures.MAX_LATENTS} of {total} dimensions."
    return caption


def write_text(path: Path, text: str) -> None:
    """
    Write a file as a whole or not at all.

    :param path: the file; an older one is replaced.
    :param text: its contents.
    :raises OSError: naming the file.
    """
    try:
        # Not by mkstemp, whose files nobody else may read.
        temporary = path.with_name(f".{path.name[:50]}-{secrets.token_hex(8)}")
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        cause = error.strerror or error
        raise OSError(f"report: cannot write '{path}': {cause}.") from error
