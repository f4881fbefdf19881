# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Make a report from what a backend draws; this part needs no tensors."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spread_analysis.history import History
from spread_analysis.report.content import Report
from spread_analysis.report.page import write_report
from spread_analysis.report.words import (
    CriticLogits,
    describe,
    describe_settings,
    figures_of,
    shorten,
)
from spread_core.messages.general import shown
from spread_core.monitors import Monitor
from spread_core.validation import FloatArray, as_float, as_host, check_count

_PACKAGES = ("pyro-spread", "numpy", "scipy", "matplotlib", "arviz", "scikit-learn")


@dataclass
class Draws:
    """
    Samples and data, drawn by a backend, and what the loss says about them.

    :param data: data by observed site, of shape (number,) + event shape.
    :param samples: the model's samples of the same sites.
    :param latents: the guide's draws by latent site, of shape (number,) + event shape.
    :param latents_of: whose posterior that is, in words.
    :param num_data: number of data that the value of the loss sums over, scaled like the value; NaN
        if that is not known.
    :param value: value of the loss.
    :param logits: logits by critic; the name of a single one is empty.
    :param troubles: warnings and errors that came up on the way.
    :param reasons: why a section has no content, by section.
    """

    data: dict[str, FloatArray]
    samples: dict[str, FloatArray]
    latents: dict[str, FloatArray] = field(default_factory=dict)
    latents_of: str = ""
    num_data: float = float("nan")
    value: float = float("nan")
    logits: dict[str, CriticLogits] = field(default_factory=dict)
    troubles: list[Any] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    def ask(self, look: Callable[[], tuple[float, Mapping[str, Any]]]) -> None:
        """
        Take in what the loss reports; if it refuses these data, the page is written without.

        :param look: returns the value of the loss, and the logits of its critics.
        """
        try:
            self.value, logits = look()
        except ValueError as error:
            self.troubles.append(f"the loss could not be asked: {error}")
            self.reasons["critic"] = "The loss could not be asked; see the warnings."
        else:
            self.logits = critic_logits(logits)


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
        self.path = Path(self.path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"report: cannot write '{self.path}': its folder does not exist. Make it first."
            )
        if self.path.is_dir():
            raise IsADirectoryError(
                f"report: cannot write '{self.path}': it is a folder. Give the name of a file in "
                "it."
            )
        if self.history is not None and not isinstance(self.history, History):
            raise TypeError(
                "report: `history` must be a spread_analysis.History, or None; got "
                f"{shown(self.history)}."
            )
        if self.losses is not None:
            if hasattr(self.losses, "detach"):
                self.losses = self.losses.detach().cpu()
            curve = as_float(self.losses, "losses")
            if curve.ndim != 1 or not curve.size:
                raise ValueError(
                    "report: `losses` must be one number per step, a vector that is not empty; got "
                    f"the shape {curve.shape}."
                )
            self.losses = curve
        if self.image_shape is not None:
            self.image_shape = tuple(int(size) for size in self.image_shape)


def check_loss(loss: Any, kinds: type) -> None:
    """
    Refuse a loss that cannot be asked anything.

    :param loss: the loss of an SVI.
    :param kinds: the backend's class of loss objects.
    :raises ValueError: if it is something else.
    """
    if not isinstance(loss, kinds):
        raise ValueError(
            f"the loss of this SVI is {shown(loss)}, which is no loss object: there is nothing to "
            "ask it. Make the SVI with loss=AdversarialDivergence(...) or any other loss or ELBO "
            "object."
        )


def critic_logits(logits: Mapping[str, Any]) -> dict[str, CriticLogits]:
    """
    The logits of critics as NumPy arrays.

    :param logits: what ``loss.look`` of either backend returns, by critic.
    """
    return {name: CriticLogits.of(each) for name, each in logits.items()}


def diagnosis(loss: Any, value: float, logits: Mapping[str, Any]) -> dict[str, float]:
    """
    The numbers that ``diagnose`` returns.

    :param loss: the loss object.
    :param value: value of the loss.
    :param logits: logits by critic.
    """
    return figures_of(describe(loss), value, critic_logits(logits))


def make_report(
    options: Options,
    loss: Any,
    draw: Callable[[], Draws],
    settings: Mapping[str, Mapping[str, str]],
    packages: Iterable[str],
) -> Report:
    """
    Draw what a report shows, and write its page.

    :param options: the arguments of ``report``.
    :param loss: the loss object.
    :param draw: draws samples. Its warnings are on the page and issued again.
    :param settings: text by name, by group, about the run.
    :param packages: the packages of the backend whose versions are shown.
    :raises ValueError: if no site has images of the shape that was asked for.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draws = draw()
    draws.troubles += caught
    report = _assemble(options, loss, draws, settings, packages)
    write_report(report)
    for item in caught:
        warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
    return report


def _assemble(
    options: Options,
    loss: Any,
    draws: Draws,
    settings: Mapping[str, Mapping[str, str]],
    packages: Iterable[str],
) -> Report:
    """A report without its metrics, from what was drawn; see :func:`make_report`."""
    words = describe(loss)
    if words.no_critic:
        draws.reasons.setdefault("critic", words.no_critic)
    monitors = loss.monitors() if hasattr(loss, "monitors") else ()
    title = f"{words.name}: training report" if options.title is None else options.title
    groups = {"Loss": describe_settings(loss)}
    groups |= {name: dict(rows) for name, rows in settings.items() if name != "Seeds"}
    notes = options.settings or {}
    groups["Notes"] = {str(name): shorten(value) for name, value in notes.items()}
    groups["Seeds"] = {"of this report": str(options.seed), **settings.get("Seeds", {})}
    groups["Versions"] = _versions([*_PACKAGES, *packages])

    def shuffled(sites: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Some of the rows in random order, since data may be sorted by class."""
        picked = {}
        for name, values in sites.items():
            order = np.random.default_rng(options.seed).permutation(len(values))
            picked[name] = values[order[: options.num_samples]]
        return picked

    report = Report(
        title=str(title),
        words=words,
        value=draws.value,
        data=shuffled(draws.data),
        samples=shuffled(draws.samples),
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
    if report.image_shape is not None and report.image_site is None:
        raise ValueError(
            f"report: image_shape={report.image_shape} fits none of the observed sites, whose "
            f"events have the sizes {report.event_sizes}. It is (height, width), or with a channel "
            "axis of 1 or 3 in the first or last place."
        )
    return report


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions by package."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def as_warnings(caught: Iterable[Any]) -> list[str]:
    """
    Texts of warnings, each once.

    :param caught: strings, warnings, or what ``catch_warnings`` recorded.
    """
    texts = []
    for item in caught:
        warning = getattr(item, "message", item)
        kind = f"{type(warning).__name__}: " if isinstance(warning, Warning) else ""
        texts.append(f"{kind}{warning}")
    return list(dict.fromkeys(texts))


def monitor_warnings(monitors: Iterable[Monitor]) -> list[str]:
    """
    Texts of what the monitors of a loss warned of during training.

    :param monitors: the monitors.
    """
    return [f"{each.category.__name__}: {each.text()}" for each in monitors if each.warned]


def count_data(sites: Iterable[tuple[NDArray[np.bool_], float]]) -> float:
    """
    How many data a loss sums over.

    :param sites: for every observed site, which data have an element that counts, and the scale of
        each datum.
    :return: the number, scaled; NaN where sites disagree.
    """
    seen, scales = zip(*((np.ravel(rows), scale) for rows, scale in sites), strict=True)
    if len({len(rows) for rows in seen}) > 1 or len(set(scales)) > 1:
        return float("nan")
    return float(np.logical_or.reduce(seen).sum() * scales[0])


def rows_of(value: Any, event_dim: int, mask: Any = None) -> FloatArray:
    """
    Values of a site with one row for each element of its batch.

    :param value: the values, of shape batch + event.
    :param event_dim: number of dimensions of the event.
    :param mask: elements that count, of the shape of ``value``, or None. Others are set to zero,
        and rows in which nothing counts are left out.
    """
    array = as_host(value)
    event = array.shape[array.ndim - event_dim :]
    rows = array.reshape(-1, *event)
    if mask is None:
        return rows
    kept = np.broadcast_to(as_host(mask).astype(bool), array.shape).reshape(rows.shape)
    rows = np.where(kept, rows, 0.0)
    return rows[kept.reshape(len(rows), -1).any(1)]


def pool_latents(
    runs: Sequence[Mapping[str, tuple[Any, int]]], shared: Iterable[str], datum: int | None
) -> tuple[dict[str, FloatArray], str]:
    """
    Posterior draws that belong together, and whose they are.

    :param runs: for every run of the guide, value and event dims by latent site.
    :param shared: latents that all data share.
    :param datum: whose latents to show; None is all data together, or the first if there are shared
        latents.
    :raises ValueError: if there is no such datum, or no latent of single data.
    """
    shared = set(shared)
    local = [name for run in runs[:1] for name in run if name not in shared]
    if datum is not None and not local:
        raise ValueError(
            f"report: datum={datum}, but the guide has no latent of single data: what it draws is "
            "shared by all. Leave datum out."
        )
    if not runs or not runs[0]:
        return {}, ""
    rows = {n: np.stack([rows_of(*run[n]) for run in runs]) for n in local}
    latents = {n: np.stack([as_host(run[n][0]) for run in runs]) for n in runs[0] if n in shared}
    if not local:
        return latents, f"{len(runs)} draws of what all data share"
    count = len(rows[local[0]][0])
    alike = {n: value for n, value in rows.items() if len(value[0]) == count}
    if datum is None and not latents:
        pooled = {n: value.reshape(-1, *value.shape[2:]) for n, value in alike.items()}
        return pooled, "one draw or more for every datum, all data together"
    index = 0 if datum is None else datum
    if not 0 <= index < count:
        raise ValueError(f"report: datum={index} is not one of the {count} data: it counts from 0.")
    chosen = {n: value[:, index] for n, value in alike.items()}
    return latents | chosen, f"{len(runs)} draws for datum {index}"
