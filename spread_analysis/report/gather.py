# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Assemble a report from what a backend has drawn; this part needs no tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spread_analysis.history import History
from spread_analysis.report.content import (
    Report,
    as_settings,
    as_warnings,
    check_arguments,
    check_image_shape,
    monitor_warnings,
    pick,
    versions,
)
from spread_analysis.report.words import CriticLogits, as_array, describe, describe_settings
from spread_core.messages import report as report_messages
from spread_core.validation import FloatArray, check_count

_PACKAGES = ("pyro-spread", "numpy", "scipy", "matplotlib", "arviz", "scikit-learn")


@dataclass
class Draws:
    """
    Samples and data, drawn by a backend.

    :param data: data by observed site, of shape (number,) + event shape.
    :param samples: the model's samples of the same sites.
    :param latents: the guide's draws by latent site, of shape (number,) + event shape.
    :param latents_of: whose posterior that is, in words.
    :param value: what the loss reports.
    :param logits: the critics' logits by critic; the name of a single one is empty.
    :param troubles: what went wrong on the way.
    :param reasons: why a section has no content, by section.
    :param num_data: how many data the value is of, scaled as it is; NaN if that is not known.
    """

    data: dict[str, FloatArray]
    samples: dict[str, FloatArray]
    latents: dict[str, FloatArray] = field(default_factory=dict)
    latents_of: str = ""
    value: float = float("nan")
    logits: dict[str, CriticLogits] = field(default_factory=dict)
    troubles: list[Any] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    num_data: float = float("nan")

    def loss_refused(self, error: Exception) -> None:
        """The loss cannot say what it reports at these data; the page is written without."""
        self.troubles.append(f"the loss could not be asked: {error}")
        self.reasons["critic"] = "The loss could not be asked; see the warnings."


@dataclass
class Options:
    """The arguments of ``report`` that both backends have; checked as soon as they are given."""

    path: str | os.PathLike[str]
    losses: ArrayLike | None
    history: History | None
    num_samples: int
    image_shape: Sequence[int] | None
    title: str | None
    settings: Mapping[str, Any] | None
    warnings: Iterable[Any]
    datum: int | None
    seed: int

    def __post_init__(self) -> None:
        check_count("report: num_samples", self.num_samples, 2)
        self.path, self.losses = check_arguments(self.path, self.losses, self.history)
        if self.image_shape is not None:
            self.image_shape = tuple(int(size) for size in self.image_shape)


def assemble(
    options: Options,
    loss: Any,
    draws: Draws,
    settings: Mapping[str, Mapping[str, str]],
    packages: Iterable[str],
) -> Report:
    """
    A report without its metrics.

    :param options: what the user asked for.
    :param loss: the loss object.
    :param draws: what was drawn.
    :param settings: of the backend: text by name, by group.
    :param packages: of the backend, of which versions are shown.
    :raises ValueError: if no site has images of the shape that was asked for.
    """
    words = describe(loss)
    if words.no_critic:
        draws.reasons.setdefault("critic", words.no_critic)
    monitors = loss.monitors() if hasattr(loss, "monitors") else ()
    title = f"{words.name}: training report" if options.title is None else options.title
    seeds = {"of this report": str(options.seed), **settings.get("Seeds", {})}
    groups = {"Loss": describe_settings(loss)}
    groups |= {name: dict(rows) for name, rows in settings.items() if name != "Seeds"}
    groups["Notes"] = as_settings(options.settings)
    groups["Seeds"] = seeds
    groups["Versions"] = versions([*_PACKAGES, *packages])
    report = Report(
        title=str(title),
        words=words,
        value=draws.value,
        data={n: pick(v, options.num_samples, options.seed) for n, v in draws.data.items()},
        samples={n: pick(v, options.num_samples, options.seed) for n, v in draws.samples.items()},
        logits=draws.logits,
        latents=draws.latents,
        latents_of=draws.latents_of,
        losses=options.losses,  # type: ignore[arg-type]
        history=options.history,
        image_shape=options.image_shape,  # type: ignore[arg-type]
        settings=groups,
        warnings=as_warnings([*options.warnings, *monitor_warnings(monitors), *draws.troubles]),
        reasons=draws.reasons,
        path=options.path,  # type: ignore[arg-type]
        num_data=draws.num_data,
    )
    check_image_shape(report)
    return report


def count_data(sites: Iterable[tuple[NDArray[np.bool_], float]]) -> float:
    """
    How many data a loss sums over.

    :param sites: of every observed site, which data have an element that counts, and what each is
        scaled by.
    :return: NaN where sites disagree.
    """
    seen, scales = zip(*((np.ravel(rows), scale) for rows, scale in sites), strict=True)
    if len({len(rows) for rows in seen}) > 1 or len(set(scales)) > 1:
        return float("nan")
    return float(np.logical_or.reduce(seen).sum() * scales[0])


def rows_of(value: Any, event_dim: int, mask: Any = None) -> FloatArray:
    """
    Values of a site with a row for each element of its batch.

    :param value: of shape batch + event.
    :param event_dim: dimensions of the event.
    :param mask: elements that count, of the shape of ``value``, or None. Others are set to zero,
        and rows of which nothing counts are left out.
    """
    array = as_array(value)
    event = array.shape[array.ndim - event_dim :]
    rows = array.reshape(-1, *event)
    if mask is None:
        return rows
    kept = np.broadcast_to(as_array(mask).astype(bool), array.shape).reshape(rows.shape)
    rows = np.where(kept, rows, 0.0)
    return rows[kept.reshape(len(rows), -1).any(1)]


def pool_latents(
    runs: Sequence[Mapping[str, tuple[Any, int]]], shared: Iterable[str], datum: int | None
) -> tuple[dict[str, FloatArray], str]:
    """
    Posterior draws that belong together, and whose they are.

    :param runs: of every run of the guide, value and event dims by latent site.
    :param shared: latents that all data share.
    :param datum: whose latents to show; None is all data together, or the first if there are shared
        latents.
    :raises ValueError: if there is no such datum, or no latent of single data.
    """
    shared = set(shared)
    local = [name for run in runs[:1] for name in run if name not in shared]
    if datum is not None and not local:
        raise ValueError(report_messages.report_no_local(datum))
    if not runs or not runs[0]:
        return {}, ""
    rows = {n: np.stack([rows_of(*run[n]) for run in runs]) for n in local}
    latents = {n: np.stack([as_array(run[n][0]) for run in runs]) for n in runs[0] if n in shared}
    if not local:
        return latents, f"{len(runs)} draws of what all data share"
    count = len(rows[local[0]][0])
    alike = {n: value for n, value in rows.items() if len(value[0]) == count}
    if datum is None and not latents:
        pooled = {n: value.reshape(-1, *value.shape[2:]) for n, value in alike.items()}
        return pooled, "one draw or more for every datum, all data together"
    index = 0 if datum is None else datum
    if not 0 <= index < count:
        raise ValueError(report_messages.report_datum(index, count))
    chosen = {n: value[:, index] for n, value in alike.items()}
    return latents | chosen, f"{len(runs)} draws for datum {index}"
