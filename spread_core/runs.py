# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What many runs of a program drew: rows of one table, some of which may have failed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spread_core.caller_warning import warn_user
from spread_core.messages import tables
from spread_core.nonfinite import InvalidSimulationsWarning


class NotOneRunError(Exception):
    """Many runs of a program cannot be one."""


@dataclass(frozen=True)
class Run:
    """
    What one run of a program drew.

    :param values: dict from site to its value, in program order.
    :param masks: dict from site to which elements count, of those that the program masks.
    :param observed: names of the sites that hold data.
    """

    values: dict[str, NDArray]
    masks: dict[str, NDArray] = field(default_factory=dict)
    observed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Runs:
    """
    Several runs, one a row.

    :param values: dict from site to values of shape (runs, ...), in program order; empty if all
        have failed.
    :param masks: dict from site to which elements count, of those that the program masks.
    :param failed: which runs raised an error; their floating values are NaN, the others 0.
    :param observed: names of the sites that hold data.
    :param error: what the first of the failed ones raised, "" if none did.
    """

    values: dict[str, NDArray]
    masks: dict[str, NDArray]
    failed: NDArray[np.bool_]
    observed: tuple[str, ...]
    error: str = ""

    def take(self, rows: slice) -> Runs:
        """Some of them."""
        return Runs(
            {site: value[rows] for site, value in self.values.items()},
            {site: mask[rows] for site, mask in self.masks.items()},
            self.failed[rows],
            self.observed,
            self.error,
        )


def stacked(rows: Sequence[Run | Exception], start: int) -> Runs:
    """
    Runs one below the other; those that raised an error are rows of NaN.

    :param rows: runs, or what they raised.
    :param start: number of the first of them.
    :raises ValueError: if their sites or shapes differ.
    """
    errors = [row for row in rows if isinstance(row, Exception)]
    said = f"{type(errors[0]).__name__}: {errors[0]}" if errors else ""
    failed = np.array([isinstance(row, Exception) for row in rows])
    good = {number: row for number, row in enumerate(rows) if isinstance(row, Run)}
    if not good:
        return Runs({}, {}, failed, (), said)
    first = next(iter(good.values()))
    values = {site: _blank(len(rows), value) for site, value in first.values.items()}
    masks: dict[str, NDArray] = {}
    for number, row in good.items():
        _check_alike(row.values, values, start + number, skip=0)
        for site, value in row.values.items():
            values[site][number] = value
        for site, mask in row.masks.items():
            masks.setdefault(site, np.ones((len(rows), *mask.shape), bool))[number] = mask
    return Runs(values, masks, failed, first.observed, said)


def joined(chunks: Sequence[Runs]) -> Runs:
    """
    All chunks as one.

    :param chunks: in their order; not all of them all failed.
    :raises ValueError: if their sites or shapes differ.
    """
    first, start = next(chunk for chunk in chunks if chunk.values), 0
    blank = {site: value[0] for site, value in first.values.items()}
    masks = {site: mask for chunk in chunks for site, mask in chunk.masks.items()}
    parts: dict[str, list[NDArray]] = {site: [] for site in [*first.values]}
    kept: dict[str, list[NDArray]] = {site: [] for site in masks}
    for chunk in chunks:
        count = len(chunk.failed)
        _check_alike(chunk.values or first.values, first.values, start, skip=1)
        start += count
        for site in parts:
            missing = chunk.values.get(site)
            parts[site].append(_blank(count, blank[site]) if missing is None else missing)
        for site, mask in masks.items():
            kept[site].append(chunk.masks.get(site, np.ones((count, *mask.shape[1:]), bool)))
    return Runs(
        {site: np.concatenate(part) for site, part in parts.items()},
        {site: np.concatenate(part) for site, part in kept.items()},
        np.concatenate([chunk.failed for chunk in chunks]),
        first.observed,
        next((chunk.error for chunk in chunks if chunk.error), ""),
    )


def _blank(count: int, like: NDArray) -> NDArray:
    """Rows of failed runs."""
    return np.full((count, *like.shape), np.nan if like.dtype.kind in "fc" else 0, like.dtype)


def _check_alike(
    values: Mapping[str, NDArray], first: Mapping[str, NDArray], number: int, skip: int
) -> None:
    if values.keys() != first.keys():
        raise ValueError(tables.other_sites(number, values, first))
    for site, value in values.items():
        shape, wanted = value.shape[skip:], first[site].shape[1:]
        if shape != wanted:
            raise ValueError(tables.other_shape(site, number, shape, wanted))


def as_table(
    runs: Runs, observed: str | Collection[str] | None
) -> tuple[dict[str, NDArray], tuple[str, ...], dict[str, NDArray], NDArray]:
    """
    What a table is made of, after a warning that counts the failed runs.

    :param runs: all of them.
    :param observed: names of the sites that hold data, if the user has said it.
    :raises ValueError: if it names no site.
    """
    names = runs.observed if observed is None else observed
    names = (names,) if isinstance(names, str) else tuple(names)
    unknown = set(names) - runs.values.keys()
    if unknown:
        raise ValueError(tables.unknown_sites(unknown, runs.values, "observed"))
    counts = {
        site: int((~finite_rows(value, runs.masks.get(site)) & ~runs.failed).sum())
        for site, value in runs.values.items()
    }
    counts = {site: count for site, count in counts.items() if count}
    raised = int(runs.failed.sum())
    if counts or raised:
        text = tables.failed_runs(counts, raised, len(runs.failed), runs.error)
        warn_user(text, InvalidSimulationsWarning)
    return runs.values, names, runs.masks, runs.failed


def finite_rows(value: NDArray, mask: NDArray | None) -> NDArray[np.bool_]:
    """Which rows are finite wherever the mask does not leave them out."""
    if value.dtype.kind not in "fc":
        return np.ones(len(value), bool)
    good = np.isfinite(value)
    if mask is not None:
        good = good | ~mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
    return good.reshape(len(value), -1).all(-1)
