# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The contents of a report: its data, the metrics computed from them, and the tiles at its top."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spread_analysis.history import History
from spread_analysis.metrics import (
    c2st,
    frechet_distance,
    median_heuristic,
    mmd2,
    precision_recall,
)
from spread_analysis.report import rendering
from spread_analysis.report.orbits import orbits
from spread_analysis.report.words import CriticLogits, LossWords, number
from spread_core.validation import FloatArray

# The classifier of the benchmark has ten units per dimension: beyond this it takes minutes.
_C2ST_FEATURES = 10
_C2ST_SAMPLES = 500
# It takes longest on few samples, and says nothing there.
_LEAST_C2ST_SAMPLES = 100
# Of what other data score, recall or precision below this share has lost something.
_LEAST_SHARE = 0.85
# Swings of a divergence in nats that are no orbit: a tenth of log 2.
_LEAST_NATS = 0.07


class MetricRow(NamedTuple):
    """
    One line of the metric table.

    :param name: name of the metric.
    :param model: score of the model's samples against the data.
    :param perfect: score of other data in place of samples, which is what can be reached. NaN where
        it was not computed: too few data to be split in two, or too slow.
    :param best: the ideal score, in words.
    :param meaning: what the metric says.
    """

    name: str
    model: float
    perfect: float
    best: str
    meaning: str


class Tile(NamedTuple):
    """
    One number at the top of the page.

    :param value: the number, as text.
    :param text: what it is.
    :param good: whether it is good; None where that cannot be said.
    """

    value: str
    text: str
    good: bool | None = None


@dataclass(repr=False)
class Report:
    """
    The contents of a report, for further use.

    :param title: title of the page.
    :param words: what the loss says about itself.
    :param value: value of the loss at the given data.
    :param data: data by observed site, of shape (number,) + event shape.
    :param samples: the model's samples of the same sites.
    :param logits: logits by critic.
    :param latents: posterior draws by latent site, of shape (number,) + event shape.
    :param latents_of: whose posterior that is, in words.
    :param losses: the loss at every step, or None.
    :param history: what :func:`diagnose` recorded during training, or None.
    :param image_shape: shape of the images at an observed site, or None.
    :param settings: text by name, by group.
    :param warnings: texts of the warnings.
    :param reasons: why a section has no content, by section.
    :param metrics: rows of the table of metrics.
    :param path: file of the page.
    :param num_data: number of data that the value sums over, scaled like the value; NaN if that is
        not known.
    """

    title: str
    words: LossWords
    value: float
    data: dict[str, FloatArray]
    samples: dict[str, FloatArray]
    logits: dict[str, CriticLogits] = field(default_factory=dict)
    latents: dict[str, FloatArray] = field(default_factory=dict)
    latents_of: str = ""
    losses: FloatArray | None = None
    history: History | None = None
    image_shape: tuple[int, ...] | None = None
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    metrics: list[MetricRow] = field(default_factory=list)
    path: Path = Path()
    num_data: float = math.nan

    def __repr__(self) -> str:
        count = len(self.warnings)
        warned = f"{count} warning" if count == 1 else f"{count} warnings"
        value = f"{self.words.label} {number(self.value)}"
        return f"<Report {self.title!r}: {value}; {warned}; {str(self.path)!r}>"

    def _repr_html_(self) -> str:
        return rendering.render("notebook.html", report=self, tiles=tiles(self))

    @property
    def image_site(self) -> str | None:
        """The observed site whose events are images of ``image_shape``."""
        if self.image_shape is None:
            return None
        size = math.prod(self.image_shape)
        return next((name for name, fitting in self.event_sizes.items() if fitting == size), None)

    @property
    def event_sizes(self) -> dict[str, int]:
        """How many numbers a datum has at every observed site."""
        return {name: math.prod(value.shape[1:]) for name, value in self.data.items()}

    def joined(self) -> tuple[FloatArray, FloatArray, list[str]]:
        """
        Data and samples as matrices with a row each, and the names of their columns.

        Sites that have not as many data as the first are left out.
        """
        first = next(iter(self.data))
        names = [n for n, value in self.data.items() if len(value) == len(self.data[first])]
        names = [n for n in names if len(self.samples[n]) == len(self.samples[first])]
        columns = []
        for name in names:
            size = self.event_sizes[name]
            columns += [name] if size == 1 else [f"{name}[{index}]" for index in range(size)]
        data, samples = (
            np.concatenate([side[n].reshape(len(side[n]), -1) for n in names], axis=1)
            for side in (self.data, self.samples)
        )
        return data, samples, columns


def tiles(report: Report) -> list[Tile]:
    """
    The tiles at the top of the page: a few numbers, green or red where that can be said.

    :param report: with its metrics.
    """
    words, finite = report.words, None if math.isfinite(report.value) else False
    found = [Tile(number(report.value), f"{words.label}, at these data", finite)]
    if words.is_sum and report.num_data > 0:
        text = f"nats per datum; {number(report.num_data)} data"
        found.append(Tile(number(report.value / report.num_data), text, finite))
    if orbiting(report):
        found.append(Tile("orbits", "the divergence swings to and fro and does not settle", False))
    for name, logits in report.logits.items():
        of, checked = f" at {name}" if name else "", logits.check(words)
        if checked is not None:
            share = f"{checked.accuracy:.1%}"
            found.append(Tile(share, f"of samples the critic{of} is right about"))
            overlap = "yes" if checked.supports_overlap else "no"
            found.append(Tile(overlap, f"supports overlap{of}", checked.supports_overlap))
    for row in report.metrics:
        if row.name == "MMD²":
            found.append(Tile(number(row.model, 3), _beside(f"{row.name} of samples", row)))
        elif row.name in ("precision", "recall"):
            good = False if is_lost(report, row) else None
            found.append(Tile(number(row.model, 3), _beside(row.name, row), good))
    count = len(report.warnings)
    found.append(Tile(str(count), "warning" if count == 1 else "warnings", count == 0))
    return found


def _beside(text: str, row: MetricRow) -> str:
    if math.isnan(row.perfect):
        return f"{text} against data"
    return f"{text} against data; other data score {number(row.perfect, 3)}"


def is_lost(report: Report, row: MetricRow) -> bool:
    """
    Whether precision or recall lies well below what other data score, beyond chance.

    :param report: the report.
    :param row: a row of its metrics.
    """
    data, samples, _ = report.joined()
    if math.isnan(row.model):
        return not np.isfinite(samples).all()
    if math.isnan(row.perfect):
        return False
    error = math.sqrt(row.model * (1 - row.model) / max(1, min(len(data) // 2, len(samples))))
    return row.model + 2 * error < _LEAST_SHARE * row.perfect


def orbiting(report: Report) -> bool:
    """Whether the divergence of a report oscillates."""
    curves: list[FloatArray] = []
    if report.words.is_divergence and report.losses is not None:
        curves.append(report.losses)
    if report.history is not None and "divergence" in report.history:
        curves.append(report.history["divergence"][1])
    least = _LEAST_NATS if report.words.unit == "nats" else 0.0
    return any(orbits(curve, least) for curve in curves)


def compute_metrics(report: Report) -> list[MetricRow]:
    """
    Model against data by every metric that applies, each next to the score of other data.

    Half of the data stands in for a perfect model, so that all numbers are of equally many samples:
    ``report.joined()`` cut to that length. Where a sample is not finite, no metric is a number.

    :param report: with data and samples.
    """
    data, samples, columns = report.joined()
    count, half = min(len(data), len(samples)), len(data) // 2
    can_split = half >= 20
    if can_split:
        count = min(count, half)
    real, generated, others = data[:count], samples[:count], data[half : half + count]
    is_finite = bool(np.isfinite(real).all() and np.isfinite(generated).all())
    bandwidth = 1.0
    pooled = np.concatenate([real, generated])
    if count >= 2 and is_finite and (np.ptp(pooled, axis=0) > 0).any():
        bandwidth = median_heuristic(real, generated)

    def row(
        name: str,
        metric: Callable[[FloatArray, FloatArray], float],
        least: int,
        best: str,
        meaning: str,
    ) -> MetricRow:
        if count < least or not is_finite:
            return MetricRow(name, math.nan, math.nan, best, meaning)
        perfect = float(metric(real, others)) if can_split else math.nan
        return MetricRow(name, float(metric(real, generated)), perfect, best, meaning)

    rows = [
        row(
            "MMD²",
            lambda x, y: mmd2(x, y, bandwidth),
            2,
            "0",
            "unbiased, Gaussian kernel at the median distance; negative values are noise about 0",
        ),
        row(
            "Fréchet distance",
            frechet_distance,
            2,
            "0",
            "of Gaussians with the samples' mean and covariance; biased upwards",
        ),
        row(
            "precision",
            lambda x, y: precision_recall(x, y).precision,
            5,
            "1",
            "share of the model's samples that look like data",
        ),
        row(
            "recall",
            lambda x, y: precision_recall(x, y).recall,
            5,
            "1",
            "share of the data that the model covers: low where it has dropped modes",
        ),
    ]
    if len(columns) <= _C2ST_FEATURES and count >= _LEAST_C2ST_SAMPLES:
        cut = _C2ST_SAMPLES
        score = c2st(real[:cut], generated[:cut]) if is_finite else math.nan
        told = "accuracy of a classifier that was trained to tell samples from data"
        # Other data score one half, by the definition of C2ST: not worth the time.
        rows.append(MetricRow("C2ST", score, math.nan, "0.5", told))
    return rows
