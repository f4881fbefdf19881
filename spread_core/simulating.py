# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Run a program many times, chunk by chunk, and put what it draws into one table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spread_core.caller_warning import warn_user
from spread_core.messages import tables
from spread_core.nonfinite import InvalidSimulationsWarning


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

    :param values: dict from site to values of shape (runs, ...), in program order.
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


def stacked(rows: Sequence[Run | Exception], start: int) -> Runs:
    """
    Runs one below the other; those that raised an error are rows of NaN.

    :param rows: runs, or what they raised.
    :param start: number of the first of them.
    :raises Exception: what the first of them raised, if all did.
    :raises ValueError: if their sites or shapes differ.
    """
    first = next((row for row in rows if isinstance(row, Run)), None)
    if first is None:
        raise next(row for row in rows if isinstance(row, Exception))
    failed = np.array([isinstance(row, Exception) for row in rows])
    values = {
        site: np.full((len(rows), *value.shape), _missing(value.dtype), value.dtype)
        for site, value in first.values.items()
    }
    masks: dict[str, NDArray] = {}
    for number, row in enumerate(rows):
        if isinstance(row, Exception):
            continue
        if row.values.keys() != values.keys():
            raise ValueError(tables.other_sites(start + number, row.values, values))
        for site, value in row.values.items():
            shape = values[site].shape[1:]
            if value.shape != shape:
                raise ValueError(tables.other_shape(site, start + number, value.shape, shape))
            values[site][number] = value
        for site, mask in row.masks.items():
            if site not in masks:
                masks[site] = np.ones((len(rows), *mask.shape), bool)
            masks[site][number] = mask
    error = next((f"{type(e).__name__}: {e}" for e in rows if isinstance(e, Exception)), "")
    return Runs(values, masks, failed, first.observed, error)


def joined(chunks: Sequence[Runs]) -> Runs:
    """
    All chunks as one.

    :raises ValueError: if their sites or shapes differ.
    """
    first, start = chunks[0], 0
    for chunk in chunks:
        if chunk.values.keys() != first.values.keys():
            raise ValueError(tables.other_sites(start, chunk.values, first.values))
        for site, value in chunk.values.items():
            shape = first.values[site].shape[1:]
            if value.shape[1:] != shape:
                raise ValueError(tables.other_shape(site, start, value.shape[1:], shape))
        start += len(chunk.failed)
    masks = {}
    for site, some in {site: mask for c in chunks for site, mask in c.masks.items()}.items():
        every = [c.masks.get(site, np.ones((len(c.failed), *some.shape[1:]), bool)) for c in chunks]
        masks[site] = np.concatenate(every)
    return Runs(
        {site: np.concatenate([c.values[site] for c in chunks]) for site in first.values},
        masks,
        np.concatenate([c.failed for c in chunks]),
        first.observed,
        next((c.error for c in chunks if c.error), ""),
    )


def run_all(run: Callable[[int, int], Runs], total: int, chunk_size: int) -> Runs:
    """
    All simulations of a table.

    :param run: makes the simulations from the first number up to the second.
    :param total: how many.
    :param chunk_size: how many at once.
    """
    starts = range(0, total, chunk_size)
    return joined([run(start, min(start + chunk_size, total)) for start in starts])


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


def _missing(dtype: np.dtype[Any]) -> float:
    return np.nan if dtype.kind in "fc" else 0


def finite_rows(value: NDArray, mask: NDArray | None) -> NDArray[np.bool_]:
    """Which rows are finite wherever the mask does not leave them out."""
    if value.dtype.kind not in "fc":
        return np.ones(len(value), bool)
    good = np.isfinite(value)
    if mask is not None:
        good = good | ~mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
    return good.reshape(len(value), -1).all(-1)
