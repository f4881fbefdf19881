# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The tiles at the top of a report: a few numbers, green or red where possible."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from spread_analysis.critic import CriticReport, critic_report
from spread_analysis.report.words import CriticLogits
from spread_core.validation import FloatArray

if TYPE_CHECKING:
    from spread_analysis.report.content import MetricRow, Report

# Of what other data score, recall or precision below this share has lost something.
_LEAST_SHARE = 0.85
# A curve that orbits swings by such a share of its level and of where it began, by a tenth of log 2
# if it is in nats, and crosses its mean this often. Neighbours in it are alike: by von Neumann's
# ratio, which is 1 for independent values.
_OF_LEVEL, _OF_START, _LEAST_NATS = 0.25, 0.1, 0.07
_LEAST_CROSSINGS, _MOST_NOISE, _FEWEST_POINTS = 3, 0.4, 16


class Tile(NamedTuple):
    """
    One number.

    :param value: as text.
    :param text: what it is.
    :param good: whether it is good; None where that cannot be said.
    """

    value: str
    text: str
    good: bool | None = None


def number(value: float, digits: int = 4) -> str:
    """A number as the page shows it; NaN and infinity are shown as such."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}g}".replace("-", "−")


def check(report: Report, logits: CriticLogits) -> CriticReport | None:
    """Check of a critic; None for one that is not a classifier or not finite."""
    if not report.words.is_classifier or logits.num_not_finite:
        return None
    return critic_report(
        logits.data,
        logits.model,
        report.words.pi,
        10,
        logits.data_weights,
        logits.model_weights,
    )


def tiles(report: Report) -> list[Tile]:
    """
    The tiles at the top of the page.

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
        of, checked = f" at {name}" if name else "", check(report, logits)
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
    :param row: of the table of metrics.
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


def orbits(curve: ArrayLike, least: float = 0.0) -> bool:
    """
    Whether the second half of a curve oscillates widely and slowly about a level.

    Noise of minibatches swings too, but without memory: means of blocks of every length from one to
    a twentieth of the half are looked at, in which an orbit shows as neighbours that are alike.

    :param curve: values of a divergence, step by step.
    :param least: swings below this are none.

        >>> steps = np.arange(1000)
        >>> orbits(1 + 0.5 * np.sin(steps / 25)), orbits(np.exp(-steps / 100))
        (True, False)
    """
    values = np.asarray(curve, np.float64)
    values = values[np.isfinite(values)]
    half = values[len(values) // 2 :]
    if len(half) < _FEWEST_POINTS:
        return False
    start = abs(float(values[: max(1, len(values) // 20)].mean()))
    limit = max(_OF_LEVEL * abs(float(np.median(half))), _OF_START * start, least)
    length = 1
    while len(half) // length >= _FEWEST_POINTS:
        blocks = half[len(half) % length :].reshape(-1, length).mean(1)
        places = np.arange(len(blocks))
        rest = blocks - np.polyval(np.polyfit(places, blocks, 1), places)
        low, high = np.quantile(rest, [0.1, 0.9])
        crossings = int((np.diff(np.sign(rest)) != 0).sum())
        noise = np.square(np.diff(rest)).mean() / (2 * rest.var()) if rest.any() else 1.0
        if high - low > limit and crossings >= _LEAST_CROSSINGS and noise < _MOST_NOISE:
            return True
        length *= 2
    return False


def summary(report: Report) -> str:
    """A report in one line, for a console."""
    count = len(report.warnings)
    warned = f"{count} warning" if count == 1 else f"{count} warnings"
    value = f"{report.words.label} {number(report.value)}"
    return f"<Report {report.title!r}: {value}; {warned}; {str(report.path)!r}>"


def summary_html(report: Report) -> str:
    """The tiles and the way to the page, for a notebook; it fits a dark one too."""
    colours = {None: "#8886", True: "#2f8f5b", False: "#d5483f"}
    cards = "".join(
        f'<div style="border:1px solid #8886;border-left:4px solid {colours[tile.good]};'
        'border-radius:8px;padding:6px 12px;max-width:14em">'
        f'<b style="font-size:1.3em">{escape(tile.value)}</b><br>'
        f"<small>{escape(tile.text)}</small></div>"
        for tile in tiles(report)
    )
    path = escape(report.path.as_posix())
    return (
        f'<div><b>{escape(report.title)}</b><div style="display:flex;flex-wrap:wrap;gap:8px;'
        f'margin:6px 0">{cards}</div>page: <a href="{path}">{path}</a></div>'
    )
