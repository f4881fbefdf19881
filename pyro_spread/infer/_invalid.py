# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulations that fail: which data of a run are NaN or inf, and how to leave them out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from pyro_spread.infer._guards import is_finite, what_is_wrong
from spread_core.messages import simulations
from spread_core.nonfinite import NonFiniteError


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
        #: Which data are bad, by site: of those sites that have any.
        self.by_site: dict[str, torch.Tensor] = {}
        self.total = 1
        #: NaN if that is among them, else inf.
        self.what = "inf"
        for name, value in values.items():
            self.total = len(_rows_first(value, axes[name]))
            if is_finite(value):
                continue
            bad, mask = ~torch.isfinite(value), (masks or {}).get(name)
            if mask is not None:
                bad = bad & mask
            rows = _rows_first(bad, axes[name]).reshape(self.total, -1).any(-1)
            if bool(rows.any()):
                self.by_site[name] = rows
                self.what = what_is_wrong(value) if self.what == "inf" else self.what

    @property
    def rows(self) -> torch.Tensor | None:
        """Which data are bad at any site, or None if there are none."""
        return torch.stack(list(self.by_site.values())).any(0) if self.by_site else None

    @property
    def counts(self) -> dict[str, int]:
        """Number of bad data by site."""
        return {name: int(rows.sum()) for name, rows in self.by_site.items()}

    def among(self, scored: torch.Tensor) -> Invalid:
        """
        The bad data that are not masked where the data are used.

        :param scored: which data it has not masked.
        """
        left = Invalid({}, {})
        left.total, left.what = self.total, self.what
        for name, rows in self.by_site.items():
            here = rows & scored.to(rows.device)
            if bool(here.any()):
                left.by_site[name] = here
        return left

    def refuse(self, may_exclude: bool = False) -> None:
        """
        :raises NonFiniteError: if there are bad data, naming site and number.
        """
        if self.by_site:
            text = simulations.failed(self.counts, self.total, may_exclude, what=self.what)
            raise NonFiniteError(text)

    @contextmanager
    def blamed(self, may_exclude: bool = False) -> Iterator[None]:
        """
        Run a computation with the data; blame its errors on bad data, if there are any.

        :raises NonFiniteError: instead of its error, if there are bad data.
        """
        try:
            yield
        except Exception:
            self.refuse(may_exclude)
            raise

    @property
    def num_bad(self) -> int:
        """Number of data that are bad at any site."""
        rows = self.rows
        return 0 if rows is None else int(rows.sum())

    @property
    def all(self) -> bool:
        """Whether no datum is good."""
        return self.num_bad == self.total

    def replaced(self, value: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
        """
        ``value`` with a good datum instead of each bad one, so that it can be computed with.

        :param value: of a site.
        :param axes: along which its data lie.
        """
        rows = self.rows
        if rows is None:
            return value
        source = torch.arange(self.total, device=value.device)
        rows = rows.to(value.device)
        source = torch.where(rows, (~rows).int().argmax(), source)
        front = tuple(range(len(axes)))
        moved = value.movedim(tuple(axes), front)
        copied = _rows_first(value, axes)[source].reshape(moved.shape)
        return copied.movedim(front, tuple(axes))

    def good(self, ndim: int, axes: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """
        Which data are good, to be broadcast to a value.

        :param ndim: number of dimensions of the value.
        :param axes: along which its data lie.
        :param sizes: of these axes.
        """
        rows = self.rows
        if rows is None:
            return torch.tensor(True)
        shaped = (~rows).reshape(*sizes, *[1] * (ndim - len(axes)))
        return shaped.movedim(tuple(range(len(axes))), tuple(axes))


def _rows_first(value: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    moved = value.movedim(tuple(axes), tuple(range(len(axes))))
    size = math.prod(moved.shape[: len(axes)])  # of Pyro's provenance tensors it is a tuple
    return moved.reshape(size, *moved.shape[len(axes) :])
