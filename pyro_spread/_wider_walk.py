# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A wider search for the nets of an SVI: through everything that the user's own code names or holds.

It goes where :func:`pyro_spread._reachable_modules.find_modules` did not go when the first
checkpoints were written: into classes, modules, containers of any kind and length, and caches. What
it finds is called otherwise in a file, so that those of earlier versions can still be read.
"""

from __future__ import annotations

import collections
import contextvars
import functools
import gc
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from pyro_spread._reachable_modules import LIBRARIES, OWN, global_names, is_followed

_MOST_OBJECTS = 500_000
_ATOMS = (str, bytes, bytearray, int, float, complex, type(None), torch.Tensor, torch.dtype)
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})


class WiderWalk:
    """
    A breadth-first search, which finds nets at any depth; nothing is called.

    :param known: nets that were found before; only others are added.
    """

    def __init__(self, known: list[tuple[str, nn.Module]]) -> None:
        self.found: list[tuple[str, nn.Module]] = []
        self._known = {id(part) for _, net in known for part in net.modules()}
        self._seen: dict[int, Any] = {}
        self._queue: collections.deque[tuple[Any, str]] = collections.deque()
        # Attributes of a module count as far as some code on the way names them.
        self._names: set[str] = set()
        self._modules: dict[types.ModuleType, str] = {}

    def __call__(self, starts: Mapping[str, Any]) -> list[tuple[str, nn.Module]]:
        for name, start in starts.items():
            self._add(start, name)
        count = -1
        while count < len(self._seen) < _MOST_OBJECTS:
            count = len(self._seen)
            while self._queue and len(self._seen) < _MOST_OBJECTS:
                value, path = self._queue.popleft()
                for name, part in self._parts(value):
                    self._add(part, f"{path}.{name}")
            for module, path in list(self._modules.items()):
                for name in sorted(self._names & vars(module).keys()):
                    self._add(vars(module)[name], f"{path}.{name}")
        return self.found

    def _add(self, value: Any, path: str) -> None:
        if isinstance(value, _ATOMS) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module) and id(value) not in self._known:
            self.found.append((path, value))
            self._known |= {id(part) for part in value.modules()}
        if isinstance(value, types.ModuleType):
            if value.__name__.partition(".")[0] not in LIBRARIES | sys.stdlib_module_names:
                self._modules[value] = path
        else:
            self._queue.append((value, path))

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, types.FunctionType):
            yield from self._parts_of_function(value)
        elif isinstance(value, type):
            if is_users(value.__module__):
                yield from vars(value).items()
                yield from ((base.__name__, base) for base in value.__bases__)
                yield "metaclass", type(value)
        elif isinstance(value, nn.Module):
            for module in value.modules():
                yield from ((k, v) for k, v in vars(module).items() if k not in OWN)
                yield type(module).__name__, type(module)
        elif isinstance(value, Mapping):
            yield from ((str(key), part) for key, part in _snapshot(value.items))
            yield from (("key", key) for key in _snapshot(value.keys))
            yield from self._parts_of_object(value)
        elif isinstance(value, np.ndarray):
            if value.dtype == object:
                yield from ((str(i), item) for i, item in enumerate(value.flat))
        elif isinstance(value, list | tuple | set | frozenset | collections.deque):
            yield from ((str(i), item) for i, item in enumerate(_snapshot(value.__iter__)))
            yield from self._parts_of_object(value)
        elif isinstance(value, weakref.ref):
            yield "of", value()
        elif isinstance(value, contextvars.ContextVar):
            yield "value", value.get(None)
        else:
            yield from self._parts_of_object(value)

    def _parts_of_function(self, fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        yield from ((f"default{i}", v) for i, v in enumerate(fn.__defaults__ or ()))
        yield from (fn.__kwdefaults__ or {}).items()
        yield from vars(fn).items()
        if not is_users(fn.__module__):
            return
        for name in _named(fn.__code__):
            self._names.add(name)
            if name in fn.__globals__:
                yield name, fn.__globals__[name]
            elif name in sys.modules:  # imported by the function, or looked up
                yield name, sys.modules[name]

    def _parts_of_object(self, value: Any) -> Iterator[tuple[str, Any]]:
        kind = type(value)
        top = kind.__module__.partition(".")[0]
        if top != "builtins" and not is_followed(kind):
            return
        yield from getattr(value, "__dict__", {}).items()
        yield kind.__name__, kind
        if top in LIBRARIES and top != "builtins":
            return
        # Slots, caches, iterators: whatever the collector sees.
        for i, part in enumerate(gc.get_referents(value)):
            if part is not kind and not (isinstance(part, dict) and "__builtins__" in part):
                yield str(i), part


def _snapshot(items: Any) -> list[Any]:
    try:
        return list(items())
    except Exception:  # code of the user, or a container that another thread is changing
        return []


def _named(code: types.CodeType) -> Iterator[str]:
    yield from global_names(code)
    yield from (constant for constant in _constants(code) if isinstance(constant, str))


def _constants(code: types.CodeType) -> Iterator[Any]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _constants(constant)
        else:
            yield constant


@functools.cache
def is_users(module: str | None) -> bool:
    """Whether a module is the user's code: neither this project's, nor Python's, nor installed."""
    top = (module or "").partition(".")[0]
    if top in LIBRARIES or top in sys.stdlib_module_names - {"__main__"}:
        return False
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return not file.startswith(_INSTALLED)
