# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise that is drawn only for the rows that a plate takes, or for all rows if all are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_spread import _parents

_aten = torch.ops.aten
# They ask for the shape, type and device of their first argument only.
_OF_THE_FORM = frozenset(
    getattr(_aten, name)
    for name in (
        *("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided"),
        *("zeros_like", "ones_like", "empty_like", "full_like"),
        *("rand_like", "randn_like", "randint_like"),
    )
)
_SAME = frozenset([_aten.detach, _aten.alias, _aten.lift_fresh])


class NoisyRows(torch.Tensor):
    """
    A tensor y ~ k(y | x) whose rows are drawn when they are first taken.

    Every row is drawn once: taking it again, by any index, gives the same values. Any operation
    except taking rows (or asking for shape and type) draws all rows.

    :param x: the clean values.
    :param draw: from some rows of x to those of y.
    :param dim: the dimension along which rows are counted.
    """

    _x: torch.Tensor
    _draw: Callable[[torch.Tensor], torch.Tensor]
    _dim: int
    _y: torch.Tensor | None
    _drawn: torch.Tensor
    _complete: bool

    __torch_function__ = _parents.no_torch_function

    @staticmethod
    def __new__(
        cls, x: torch.Tensor, draw: Callable[[torch.Tensor], torch.Tensor], dim: int
    ) -> NoisyRows:
        made = _parents.wrapper_tensor(cls, x)
        made._x, made._draw, made._dim = x, draw, dim
        made._y, made._complete = None, False
        made._drawn = torch.zeros(x.shape[dim], dtype=torch.bool, device=x.device)
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.whole())

    @property
    def seen(self) -> torch.Tensor:
        """The rows that were drawn so far."""
        if self._complete:
            return self.whole()
        return self.rows(self._drawn.nonzero()[:, 0])

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """
        Some rows.

        :param index: their numbers, of shape (number,), none of them negative.
        """
        todo = index[~self._drawn[index]]
        if len(todo):
            todo = todo.unique()
            if self._y is None:
                self._y = torch.empty(self._x.shape, dtype=self._x.dtype, device=self._x.device)
            drawn = self._draw(self._x.index_select(self._dim, todo))
            self._y.index_copy_(self._dim, todo, drawn)
            self._drawn[todo] = True
        y = self._x if self._y is None else self._y  # no rows were asked for
        return y.index_select(self._dim, index)

    def whole(self) -> torch.Tensor:
        """All of it."""
        if not self._complete:
            if not bool(self._drawn.any()):
                self._y = self._draw(self._x)
            else:
                self.rows((~self._drawn).nonzero()[:, 0])
            self._complete = True
        assert self._y is not None
        return self._y

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, first = func.overloadpacket, args[0] if args else None
        if isinstance(first, NoisyRows) and not first._complete:
            if name in _OF_THE_FORM:
                return func(first._x, *args[1:], **kwargs)
            if name in _SAME or (name is _aten.view and tuple(args[1]) == tuple(first.shape)):
                return first
            taken = _rows_asked(first, name, args, kwargs)
            if taken is not None:
                return taken
        args, kwargs = _parents.tree_map(
            lambda a: a.whole() if isinstance(a, NoisyRows) else a, (args, kwargs)
        )
        return func(*args, **kwargs)


def _rows_asked(y: NoisyRows, name: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation that takes rows and nothing else; None for all others."""
    dim, size, rest = y._dim, y.shape[y._dim], args[1:]
    if name is _aten.slice:
        defaults: list[Any] = [0, None, None, 1]
        along, start, end, step = [*rest, *defaults[len(rest) :]]
        start, end, step = slice(start, end, step).indices(y.shape[along])
        if (start, end, step) == (0, y.shape[along], 1):
            return y
        if along % y.dim() == dim:
            return y.rows(torch.arange(start, end, step, device=y.device))
    if name is _aten.select and rest[0] % y.dim() == dim:
        return y.rows(torch.tensor([rest[1] % size], device=y.device)).squeeze(dim)
    if name is _aten.index_select and rest[0] % y.dim() == dim:
        return y.rows(rest[1].long().reshape(-1))
    if name is _aten.index:
        indices = rest[0]
        index = indices[dim] if len(indices) == dim + 1 else None
        if index is None or any(other is not None for other in indices[:dim]):
            return None
        if index.dtype == torch.bool:
            return y.rows(index.nonzero()[:, 0]) if index.dim() == 1 else None
        flat = index.reshape(-1).long()
        flat = torch.where(flat < 0, flat + size, flat)
        if bool(((flat < 0) | (flat >= size)).any()):
            return None  # for torch to say
        return y.rows(flat).unflatten(dim, index.shape) if index.dim() != 1 else y.rows(flat)
    return None
