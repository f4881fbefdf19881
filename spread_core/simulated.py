# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What a guide is scored at: the data sites that it knows, and rows of a table of simulations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from spread_core.arguments import accepts
from spread_core.messages import simulations as messages
from spread_core.nonfinite import InvalidSimulationsWarning
from spread_core.validation import check_count

#: Rows of a step, where nobody says how many.
DEFAULT_ROWS = 256


def known_data_sites(guide: Any, args: Any, kwargs: Any) -> tuple[str, ...] | None:
    """
    Names of the data sites of a guide that knows them; None for any other guide.

    :param guide: it knows them if it has ``data_sites(*args, **kwargs)`` and ``given(values)``.
    """
    methods = (getattr(guide, name, None) for name in ("data_sites", "given"))
    return tuple(guide.data_sites(*args, **kwargs)) if all(map(callable, methods)) else None


def given(guide: Any, values: Mapping[str, Any], masks: Mapping[str, Any]) -> Callable[..., Any]:
    """
    The guide at simulated data instead of those in its arguments.

    :param guide: one that knows its data sites.
    :param values: dict from data site to value.
    :param masks: dict from data site to which elements of its batch count; empty if all do.
    :raises ValueError: if something is masked and the guide cannot be told.
    """
    if not masks:
        result: Callable[..., Any] = guide.given(values)
        return result
    if not accepts(guide.given, values, masks=masks):
        raise ValueError(messages.guide_without_masks(next(iter(masks))))
    masked: Callable[..., Any] = guide.given(values, masks=masks)
    return masked


def check_names(names: Collection[str], drawn: Collection[str], told: str) -> None:
    """
    Refuse data sites that the model does not draw.

    :param names: of the data sites.
    :param drawn: names of the model's sample sites.
    :param told: who says so, for the message.
    :raises ValueError: naming the first.
    """
    unknown = next((name for name in names if name not in drawn), None)
    if unknown is not None:
        raise ValueError(messages.no_such_data_site(told, unknown, drawn))


class Table:
    """
    The rows of a table that did not fail, as arrays of the backend, to draw from at every step.

    :param simulations: the table.
    :param as_array: makes an array of the backend out of one of NumPy.
    :raises TypeError: if it is no table.
    :raises ValueError: if all rows have failed.
    """

    def __init__(self, simulations: Any, as_array: Callable[[Any], Any]) -> None:
        if not all(hasattr(simulations, name) for name in ("values", "valid", "observed", "masks")):
            raise TypeError(messages.no_table(simulations))
        valid = np.asarray(simulations.valid, bool)
        rows = np.flatnonzero(valid)
        if not len(rows):
            raise ValueError(messages.no_valid_row(len(valid)))
        if len(rows) < len(valid):
            said = messages.rows_left_out(len(valid) - len(rows), len(valid))
            warnings.warn(said, InvalidSimulationsWarning, stacklevel=5)
        self.observed = tuple(simulations.observed)
        self.masks = {
            name: as_array(np.asarray(mask, bool)[rows]) for name, mask in simulations.masks.items()
        }
        self.values = {
            name: as_array(_finite(np.asarray(value)[rows], simulations.masks.get(name), rows))
            for name, value in simulations.values.items()
        }
        self.size = len(rows)

    def rows_per_step(self, num_particles: int | None) -> int:
        """How many rows a step takes: what was asked for, 256 by default, at most all."""
        if num_particles is not None:
            check_count("num_particles", num_particles)
        return min(DEFAULT_ROWS if num_particles is None else num_particles, self.size)

    def check_sites(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """
        Refuse sites that the table does not have, or not in their shapes.

        :param shapes: dict from site to the shape of its value in one run.
        :raises ValueError: naming the site.
        """
        for name, shape in shapes.items():
            if name not in self.values:
                raise ValueError(messages.site_not_in_table(name, self.values))
            own = tuple(self.values[name].shape[1:])
            if own != tuple(shape):
                raise ValueError(messages.row_shape(name, own, shape))


def _finite(value: Any, mask: Any, rows: Any) -> Any:
    """``value`` with zeros for masked elements that are NaN or inf: what they are is no data."""
    if mask is None or value.dtype.kind != "f":
        return value
    mask = np.asarray(mask, bool)[rows]
    mask = mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
    return np.where(mask | np.isfinite(value), value, np.zeros((), value.dtype))
