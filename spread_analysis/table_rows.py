# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Rows of a table of simulations, as values at the sites of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spread_analysis.simulations import Simulations
from spread_core.caller_warning import warn_user
from spread_core.messages import calibration
from spread_core.messages import simulations as failures
from spread_core.nonfinite import InvalidSimulationsWarning


class SiteOfTable(NamedTuple):
    """
    A site of the model, whose values a table holds.

    :param shape: of its value, batch + event.
    :param axes: axes along which data lie, negative.
    :param mask: elements that the model does not mask out, of ``shape``.
    :param mask_moves: whether the model masks out others in another run.
    """

    shape: tuple[int, ...]
    axes: Sequence[int]
    mask: NDArray[np.bool_]
    mask_moves: bool = False


class Rows(NamedTuple):
    """
    Some rows of a table.

    :param values: dict from site to its value, of the site's shape.
    :param kept: dict from site to the elements that count, of the site's shape.
    :param number: how many of the data are rows of the table, the first ones; others fill a batch.
    """

    values: dict[str, NDArray]
    kept: dict[str, NDArray[np.bool_]]
    number: int


class TableRows:
    """
    Goes through a table once, leaving out what has failed, with one warning.

    A row is a run of the model, or one datum of the plates that all its sites share: then as many
    rows are put together as the model has data.

    :param table: the simulations.
    :param sites: the model's sites that are needed.
    :param data: those of them that the guide is given.
    :raises ValueError: if the table lacks one, has it in another shape, or not its mask; if the
        guide is given no data; or if all rows have failed. The message names the site.
    """

    def __init__(
        self, table: Simulations, sites: Mapping[str, SiteOfTable], data: Iterable[str]
    ) -> None:
        data = list(data)
        if not data:
            raise ValueError(calibration.no_data_sites())
        for name, site in sites.items():
            if name not in table:
                raise ValueError(calibration.lacks_site(name, table.values))
            if site.mask_moves and name not in table.masks:
                raise ValueError(calibration.lacks_mask(name))
        self._table, self._sites = table, sites
        first = sites[data[0]]
        #: Whether a row is one datum of a run, not a run.
        self.by_datum = bool(first.axes) and table[data[0]].shape[1:] != first.shape
        for name, site in sites.items():
            shape = table[name].shape[1:]
            wanted = _of_datum(site) if self.by_datum else site.shape
            if shape != wanted:
                raise ValueError(calibration.row_shape(name, shape, site.shape, _of_datum(site)))
        #: Data of one run.
        self.num_data = math.prod(first.shape[axis] for axis in first.axes)
        self._good = np.flatnonzero(self._valid())

    def _valid(self) -> NDArray[np.bool_]:
        valid = self._table.valid
        if not valid.any():
            raise ValueError(calibration.all_rows_failed(len(valid)))
        if not valid.all():
            bad = {}
            for name, value in self._table.values.items():
                alone = Simulations(
                    {name: value},
                    masks={n: m for n, m in self._table.masks.items() if n == name},
                )
                bad[name] = int((~alone.valid).sum())
            counts = {name: count for name, count in bad.items() if count}
            text = failures.left_out(counts or {"?": int((~valid).sum())}, len(valid))
            warn_user(text, InvalidSimulationsWarning)
        return valid

    def __iter__(self) -> Iterator[Rows]:
        size = self.num_data if self.by_datum else 1
        for start in range(0, len(self._good), size):
            chosen = self._good[start : start + size]
            number = len(chosen) if self.by_datum else self.num_data
            chosen = np.resize(chosen, size)
            values, kept = {}, {}
            for name, site in self._sites.items():
                value, mask = self._table[name][chosen], self._mask(name, chosen)
                # What is masked out may be NaN, which must not reach a net.
                value = np.where(mask | np.isfinite(value), value, np.zeros((), value.dtype))
                values[name], kept[name] = self._shaped(value, site), self._shaped(mask, site)
            yield Rows(values, kept, number)

    def _mask(self, name: str, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
        shape = (len(chosen), *self._table[name].shape[1:])
        if name in self._table.masks:
            mask = self._table.masks[name][chosen]
            return np.broadcast_to(
                mask.reshape(*mask.shape, *[1] * (len(shape) - mask.ndim)), shape
            )
        site = self._sites[name]
        if not self.by_datum:
            return site.mask[None]
        front = np.moveaxis(site.mask, site.axes, range(len(site.axes)))
        return front.reshape(shape)

    def _shaped(self, rows: NDArray, site: SiteOfTable) -> NDArray:
        if not self.by_datum:
            return rows[0]
        sizes = [site.shape[axis] for axis in site.axes]
        front = rows.reshape(*sizes, *rows.shape[1:])
        return np.moveaxis(front, range(len(sizes)), site.axes)


def _of_datum(site: SiteOfTable) -> tuple[int, ...]:
    """Shape of one datum of a site."""
    axes = [axis % len(site.shape) for axis in site.axes] if site.shape else []
    return tuple(size for axis, size in enumerate(site.shape) if axis not in axes)
