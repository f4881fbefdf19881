# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulations that fail: which data of a run are NaN or inf, and how to leave them out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch

from pyro_spread.infer._guards import is_finite
from spread_analysis._messages import simulations
from spread_analysis._nonfinite import InvalidSimulationsWarning, NonFiniteError


class Invalid:
    """
    Which data of a run are NaN or inf.

    :param values: dict from site to its draws.
    :param axes: dict from site to the axes, negative, along which its data lie; none if it is one
        datum.
    :param masks: dict from site to which elements of it count, None if all do.
    """

    def __init__(
        self,
        values: Mapping[str, torch.Tensor],
        axes: Mapping[str, Sequence[int]],
        masks: Mapping[str, torch.Tensor | None] | None = None,
    ) -> None:
        #: Number of bad data by site.
        self.counts: dict[str, int] = {}
        #: Which data are bad, or None if there are none.
        self.rows: torch.Tensor | None = None
        self.total = 1
        for name, value in values.items():
            self.total = len(_rows_first(value, axes[name]))
            if is_finite(value):
                continue
            bad, mask = ~torch.isfinite(value), (masks or {}).get(name)
            if mask is not None:
                bad = bad & mask
            rows = _rows_first(bad, axes[name]).reshape(self.total, -1).any(-1)
            if bool(rows.any()):
                self.counts[name] = int(rows.sum())
                self.rows = rows if self.rows is None else self.rows | rows

    def refuse(self, may_exclude: bool = False) -> None:
        """
        :raises NonFiniteError: if there are bad data, naming site and number.
        """
        if self.rows is not None:
            raise NonFiniteError(simulations.failed(self.counts, self.total, may_exclude))

    @property
    def num_bad(self) -> int:
        """Number of data that are bad at any site."""
        return 0 if self.rows is None else int(self.rows.sum())

    @property
    def all(self) -> bool:
        """Whether no datum is good."""
        return self.rows is not None and bool(self.rows.all())

    def replaced(self, value: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
        """
        ``value`` with a good datum in the place of each bad one, so that it can be computed with.

        :param value: of a site.
        :param axes: along which its data lie.
        """
        if self.rows is None:
            return value
        source = torch.arange(self.total, device=value.device)
        rows = self.rows.to(value.device)
        source = torch.where(rows, (~rows).int().argmax(), source)
        front = tuple(range(len(axes)))
        moved = value.movedim(tuple(axes), front)
        copied = _rows_first(value, axes)[source].reshape(moved.shape)
        return copied.movedim(front, tuple(axes))

    def good(self, ndim: int, axes: Sequence[int], sizes: Sequence[int]) -> torch.Tensor | bool:
        """
        Which data are good, to be broadcast to a value.

        :param ndim: number of dimensions of the value.
        :param axes: along which its data lie.
        :param sizes: of these axes.
        """
        if self.rows is None:
            return True
        shaped = (~self.rows).reshape(*sizes, *[1] * (ndim - len(axes)))
        return shaped.movedim(tuple(range(len(axes))), tuple(axes))


class Told:
    """Says once how many simulations were left out."""

    def __init__(self) -> None:
        self._is_told = False

    def __call__(self, invalid: Invalid) -> None:
        if invalid.rows is not None and not self._is_told:
            self._is_told = True
            text = simulations.left_out(invalid.counts, invalid.total)
            warnings.warn(text, InvalidSimulationsWarning, stacklevel=2)


def _rows_first(value: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    moved = value.movedim(tuple(axes), tuple(range(len(axes))))
    size = moved.shape[: len(axes)].numel()
    return moved.reshape(size, *moved.shape[len(axes) :])
