# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Copies of params and optimisers from before a step, for optimisers of any class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro.optim import PyroOptim
from torch import nn

from pyro_spread import _parents

# Optimisers that keep all they know in ``state`` and ``param_groups``, or are schedules.
_PLAIN = ("torch.optim.", "pyro.optim.")
# Attributes of Pyro's optimisers that do not change, and one that is treated separately.
_FIXED = ("optim_objs", "pt_optim_args", "pt_clip_args", "kwargs")
_MOST_LEVELS = 8


class OptimiserState:
    """
    Params, and what an optimiser keeps of them.

    :param optim: the optimiser.
    :param params: those that it is about to move.
    """

    def __init__(self, optim: PyroOptim, params: Sequence[torch.Tensor]) -> None:
        self._params = list(params)
        self._tensors: list[torch.Tensor] = list(params)
        self._tables: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._seen = {id(param): param for param in params}
        for one in _players(optim):
            self._keep_player(one)
        self._values = _copies(optim, self._tensors)

    def _keep_player(self, optim: PyroOptim) -> None:
        own = vars(optim)
        objects = own.get("optim_objs", {})
        self._tables += [(own, dict(own)), (objects, dict(objects))]
        for param in self._params:
            if param in objects:
                self._keep_optimizer(param, objects[param])
        for name, value in own.items():
            if name not in _FIXED and isinstance(value, torch.Tensor | dict | list):
                self._keep(value)

    def _keep_optimizer(self, param: torch.Tensor, optimizer: Any) -> None:
        if not type(optimizer).__module__.startswith(_PLAIN):
            self._keep(optimizer)
            return
        own = vars(optimizer)
        self._tables.append((own, dict(own)))
        if "optimizer" in own:  # it is a schedule
            self._keep_optimizer(param, own["optimizer"])
            return
        state, groups = own["state"], own["param_groups"]
        self._tables.append((state, dict(state)))
        self._lists.append((groups, list(groups)))
        self._tables += [(group, dict(group)) for group in groups]
        for each in state.values():
            self._tables.append((each, dict(each)))
            for value in each.values():
                if isinstance(value, torch.Tensor):
                    self._tensors.append(value)
                elif isinstance(value, list | dict):
                    self._keep(value)

    def _keep(self, value: Any, level: int = 0) -> None:
        """Through containers and objects of any class: slow, and in no stock optimiser."""
        if id(value) in self._seen or level > _MOST_LEVELS:
            return
        if isinstance(value, torch.Tensor):
            self._tensors.append(value)
        elif isinstance(value, dict):
            self._tables.append((value, dict(value)))
            for each in list(value.values()):
                self._keep(each, level + 1)
        elif isinstance(value, list | tuple):
            if isinstance(value, list):
                self._lists.append((value, list(value)))
            for each in value:
                self._keep(each, level + 1)
        elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module | FunctionType):
            self._keep(vars(value), level + 1)
        else:
            return
        self._seen[id(value)] = value

    def restore(self) -> None:
        """Restore everything."""
        for now, before in self._tables:
            now.clear()
            now.update(before)
        for each, members in self._lists:
            each[:] = members
        with torch.no_grad():
            for tensor, value in zip(self._tensors, self._values, strict=True):
                tensor.copy_(value)

    def shorten(self, scale: float) -> None:
        """Undo a part of the change of the params."""
        with torch.no_grad():
            for param, value in zip(self._params, self._values, strict=False):
                param.copy_(torch.lerp(value, param, scale))


# Memory for the copies of one step after the other: to ask for it anew takes longer than to copy.
_memory: WeakKeyDictionary[PyroOptim, dict[int, torch.Tensor]] = WeakKeyDictionary()


@torch.no_grad()
def _copies(optim: PyroOptim, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    memory = _memory.setdefault(optim, {})
    if len(memory) > 2 * len(tensors):
        memory.clear()
    copies = []
    for tensor in tensors:
        copy = memory.get(id(tensor))
        if (
            copy is None
            or copy.shape != tensor.shape
            or copy.dtype != tensor.dtype
            or copy.device != tensor.device
        ):
            copy = memory[id(tensor)] = torch.empty_like(tensor, requires_grad=False)
        copies.append(copy)
    if tensors:
        _parents.copy_all(copies, tensors)
    return copies


def _players(optim: PyroOptim) -> Iterator[PyroOptim]:
    yield optim
    for part in getattr(optim, "parts", dict)().values():
        yield from _players(part)
