# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The contents of a report, gathered by a backend, and the metrics computed from them."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from spread_analysis.history import History
from spread_analysis.metrics import (
    c2st,
    frechet_distance,
    median_heuristic,
    mmd2,
    precision_recall,
)
from spread_analysis.report.tiles import summary, summary_html
from spread_analysis.report.words import CriticLogits, LossWords, shorten
from spread_core.messages import report as report_messages
from spread_core.monitors import Monitor
from spread_core.validation import FloatArray, as_float

# The classifier of the benchmark has ten units per dimension: beyond this it takes minutes.
_C2ST_FEATURES = 10
_C2ST_SAMPLES = 500
# It takes longest on few samples, and says nothing there.
_LEAST_C2ST_SAMPLES = 100


class MetricRow(NamedTuple):
    """
    One line of the metric table.

    :param name: of the metric.
    :param model: the model's samples against the data.
    :param perfect: the same for other data in place of samples: what can be reached. NaN where
        that was not computed: too few data to be split in two, or too slow.
    :param best: the ideal, in words.
    :param meaning: what it says.
    """

    name: str
    model: float
    perfect: float
    best: str
    meaning: str


@dataclass(repr=False)
class Report:
    """
    The contents of a report, for further use.

    :param title: of the page.
    :param words: about the loss.
    :param value: the value of the loss at the given data.
    :param data: data by observed site, of shape (number,) + event shape.
    :param samples: the model's samples of the same sites.
    :param logits: the critics' logits by critic.
    :param latents: posterior draws by latent site, of shape (number,) + event shape.
    :param latents_of: whose posterior that is, in words.
    :param losses: the loss at every step, or None.
    :param history: what was looked at during training, or None.
    :param image_shape: of an observed site's event, or None.
    :param settings: text by name, by group.
    :param warnings: what was warned of.
    :param reasons: why a section has no content, by section.
    :param metrics: the table.
    :param path: of the page.
    :param num_data: how many data the value is of, scaled as it is; NaN if that is not known.
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
        return summary(self)

    def _repr_html_(self) -> str:
        return summary_html(self)

    @property
    def image_site(self) -> str | None:
        """The observed site whose events are images of ``image_shape``."""
        if self.image_shape is None:
            return None
        size = math.prod(self.image_shape)
        fitting = [name for name, value in self.data.items() if _event_size(value) == size]
        return fitting[0] if fitting else None

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
            size = _event_size(self.data[name])
            columns += [name] if size == 1 else [f"{name}[{index}]" for index in range(size)]
        data, samples = (
            np.concatenate([side[n].reshape(len(side[n]), -1) for n in names], axis=1)
            for side in (self.data, self.samples)
        )
        return data, samples, columns


def _event_size(value: FloatArray) -> int:
    return math.prod(value.shape[1:])


def check_arguments(
    path: str | os.PathLike[str], losses: ArrayLike | None, history: Any
) -> tuple[Path, FloatArray | None]:
    """
    Check arguments before anything is drawn.

    :param path: of the page to be written.
    :param losses: loss at every step, or None.
    :param history: a History, or None.
    :raises OSError: if nothing can be written there.
    :raises ValueError: if losses are not a vector.
    :raises TypeError: if history is something else.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(report_messages.report_folder(target))
    if target.is_dir():
        raise IsADirectoryError(report_messages.report_is_folder(target))
    if history is not None and not isinstance(history, History):
        raise TypeError(report_messages.report_history(history))
    if losses is None:
        return target, None
    if hasattr(losses, "detach"):
        losses = losses.detach().cpu()
    curve = as_float(losses, "losses")
    if curve.ndim != 1 or not curve.size:
        raise ValueError(report_messages.report_losses(curve.shape))
    return target, curve


def check_image_shape(report: Report) -> None:
    """
    Make sure that one of the sites has such images.

    :raises ValueError: naming the sites and their sizes.
    """
    if report.image_shape is not None and report.image_site is None:
        sizes = {name: _event_size(value) for name, value in report.data.items()}
        raise ValueError(report_messages.report_image_shape(report.image_shape, sizes))


def pick(values: FloatArray, number: int, seed: int) -> FloatArray:
    """At most ``number`` rows, in an order of chance: data may lie sorted by class."""
    order = np.random.default_rng(seed).permutation(len(values))[:number]
    return values[order]


def compute_metrics(report: Report) -> list[MetricRow]:
    """
    Model against data by every metric that applies, each next to the score of other data.

    Half of the data stands in for a perfect model, so that all numbers are of equally many samples:
    ``report.joined()`` cut to that length. Where a sample is not finite, no metric is a number.

    :param report: with data and samples.
    """
    data, samples, columns = report.joined()
    number = min(len(data), len(samples))
    half = len(data) // 2
    if half >= 20:
        number = min(number, half)
    real, generated = data[:number], samples[:number]
    others = data[half : half + number] if half >= 20 else None
    both_finite = bool(np.isfinite(real).all() and np.isfinite(generated).all())

    def of(metric: Callable[[FloatArray, FloatArray], float], least: int) -> tuple[float, float]:
        if number < least or not both_finite:
            return math.nan, math.nan
        perfect = math.nan if others is None else float(metric(real, others))
        return float(metric(real, generated)), perfect

    bandwidth = 1.0
    pooled = np.concatenate([real, generated])
    if number >= 2 and both_finite and (np.ptp(pooled, axis=0) > 0).any():
        bandwidth = median_heuristic(real, generated)
    rows = [
        MetricRow(
            "MMD²",
            *of(lambda x, y: mmd2(x, y, bandwidth), 2),
            "0",
            "unbiased, Gaussian kernel at the median distance; negative values are noise about 0",
        ),
        MetricRow(
            "Fréchet distance",
            *of(frechet_distance, 2),
            "0",
            "of Gaussians with the samples' mean and covariance; biased upwards",
        ),
        MetricRow(
            "precision",
            *of(lambda x, y: precision_recall(x, y).precision, 5),
            "1",
            "share of the model's samples that look like data",
        ),
        MetricRow(
            "recall",
            *of(lambda x, y: precision_recall(x, y).recall, 5),
            "1",
            "share of the data that the model covers: low where it has dropped modes",
        ),
    ]
    if len(columns) <= _C2ST_FEATURES and number >= _LEAST_C2ST_SAMPLES:
        cut = _C2ST_SAMPLES
        score = c2st(real[:cut], generated[:cut]) if both_finite else math.nan
        rows.append(
            MetricRow(
                "C2ST",
                score,
                math.nan,  # chance, by its definition: not worth the time
                "0.5",
                "accuracy of a classifier that was trained to tell samples from data",
            )
        )
    return rows


def write_text(path: Path, text: str) -> None:
    """
    Write a file as a whole or not at all.

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
        raise OSError(report_messages.report_unwritable(path, error.strerror or error)) from error


def as_warnings(caught: Iterable[Any]) -> list[str]:
    """Texts of warnings, each once: strings, warnings, or what ``catch_warnings`` recorded."""
    texts = []
    for item in caught:
        warning = getattr(item, "message", item)
        text = str(warning)
        if isinstance(warning, Warning):
            text = f"{type(warning).__name__}: {text}"
        texts.append(text)
    return list(dict.fromkeys(texts))


def monitor_warnings(monitors: Iterable[Monitor]) -> list[str]:
    """What monitors of a loss have warned of during training."""
    return [f"{each.category.__name__}: {each.text()}" for each in monitors if each.warned]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions by package."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def as_settings(settings: Mapping[str, Any] | None) -> dict[str, str]:
    """Settings from the caller, as text."""
    return {str(name): shorten(value) for name, value in (settings or {}).items()}
