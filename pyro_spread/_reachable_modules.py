# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Find the nets that an SVI uses, and what they hold in addition to the params of the store."""

from __future__ import annotations

import collections
import contextvars
import functools
import gc
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import nn

from pyro_spread import _parents
from pyro_spread._steps import Steps

# What these define leads to no net of the user, but to half of the interpreter.
_LIBRARIES = frozenset(
    ("torch", "pyro", "numpy", "scipy", "builtins", "logging", "pyro_spread", "spread_core")
) | {"spread_analysis"}
_FOLLOWED_LIBRARIES = frozenset(("pyro", "pyro_spread", "functools"))  # objects that wrap a model
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})
_OWN = frozenset(vars(nn.Module()))
_DIVIDER = "$$$"
_ATOMS = (str, bytes, bytearray, int, float, complex, type(None), torch.Tensor, torch.dtype)
_NOT_FOLLOWED = (*_ATOMS, Steps)  # compiled steps hold graphs, which are modules of torch
# A narrow search stops here, a wide one at many more objects only.
_MOST_ITEMS, _MOST_OBJECTS, _MOST_LEVELS = 1000, 20_000, 16
_MOST_OBJECTS_OF_ALL = 500_000


class Held(NamedTuple):
    """State of a net: a tensor, or a module with custom state."""

    module: nn.Module
    tensor: torch.Tensor | None


def loss_of(svi: Any) -> Any:
    """The loss object of an SVI, or the function that it was made with."""
    return getattr(svi.loss, "__self__", svi.loss)


def find_modules(
    svi: Any, extra: Mapping[str, nn.Module] | None, wide: bool = True
) -> list[tuple[str, nn.Module]]:
    """
    Nets that model, guide and loss hold, close over or name, and ``extra``, each with a path.

    A narrow search comes first: files call its nets by its paths. A wide one adds the nets that
    only it finds, which files list apart, since those of earlier versions do not have them.

    :param svi: the SVI.
    :param extra: more nets by name.
    :param wide: whether to search widely too.
    """
    starts = {"model": svi.model, "guide": svi.guide, "loss": loss_of(svi)}
    search = _Search()
    search([*(extra or {}).items(), *starts.items()], wide=False)
    if wide:
        search(list(starts.items()), wide=True)
    return search.found


class _Search:
    """
    Search everything that the user's own code names or holds; nothing is called.

    Narrow: functions, partials, containers and plain objects, depth first. Wide: also classes,
    modules, containers of any kind and length, and caches, breadth first and at any depth.
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, nn.Module]] = []
        self._known: set[int] = set()

    def __call__(self, starts: list[tuple[str, Any]], wide: bool) -> None:
        self._wide = wide
        # Attributes of a module count as far as some code on the way names them.
        self._names: set[str] = set()
        modules: dict[types.ModuleType, str] = {}
        seen: dict[int, Any] = {}  # the objects too, so that no id is used twice
        queue: collections.deque[tuple[str, Any, int]] = collections.deque()

        def add(parts: Iterable[tuple[str, Any]], prefix: str, level: int) -> None:
            new = [
                (prefix + name, part, level)
                for name, part in parts
                if not isinstance(part, _NOT_FOLLOWED) and id(part) not in seen
            ]
            queue.extend(new if wide else reversed(new))

        add(starts, "", 0)
        while queue and len(seen) < (_MOST_OBJECTS_OF_ALL if wide else _MOST_OBJECTS):
            path, value, level = queue.popleft() if wide else queue.pop()
            if id(value) not in seen and (wide or level <= _MOST_LEVELS):
                seen[id(value)] = value
                if isinstance(value, nn.Module) and id(value) not in self._known:
                    self.found.append((path, value))
                    self._known |= {id(part) for part in value.modules()}
                if not isinstance(value, types.ModuleType):
                    add(self._parts(value), f"{path}.", level + 1)
                elif _top(value.__name__) not in _LIBRARIES | sys.stdlib_module_names:
                    modules[value] = path
            for module, its_path in modules.items() if wide and not queue else ():
                named = sorted(self._names & vars(module).keys())
                add(((name, vars(module)[name]) for name in named), f"{its_path}.", 0)

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, nn.Module):
            for module in value.modules():  # an autoguide keeps its model in a tuple
                yield from ((k, v) for k, v in vars(module).items() if k not in _OWN)
                if self._wide:
                    yield type(module).__name__, type(module)
        elif isinstance(value, types.FunctionType):
            yield from self._parts_of_function(value)
        elif self._wide:
            yield from self._parts_seen_widely(value)
        elif isinstance(value, types.MethodType):
            yield "self", value.__self__
            yield "function", value.__func__
        elif isinstance(value, functools.partial):
            yield "function", value.func
            yield from ((str(i), v) for i, v in enumerate(value.args))
            yield from value.keywords.items()
            yield from vars(value).items()
        elif isinstance(value, Mapping):
            if len(value) <= _MOST_ITEMS:
                yield from ((str(k), v) for k, v in value.items())
        elif isinstance(value, list | tuple | set | frozenset):
            if len(value) <= _MOST_ITEMS:
                yield from ((str(i), v) for i, v in enumerate(value))
        elif not isinstance(value, type) and hasattr(value, "__dict__") and _is_followed(value):
            yield from vars(value).items()

    def _parts_of_function(self, fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            with suppress(ValueError):  # not assigned yet
                yield name, cell.cell_contents
        yield from ((f"default{i}", v) for i, v in enumerate(fn.__defaults__ or ()))
        yield from (fn.__kwdefaults__ or {}).items()
        yield from vars(fn).items()
        if _top(fn.__module__) in _LIBRARIES or (self._wide and not _is_users(fn.__module__)):
            return
        for name in _named(fn.__code__, self._wide):
            self._names.add(name)
            if name in fn.__globals__:
                yield name, fn.__globals__[name]
            elif self._wide and name in sys.modules:  # imported by the function, or looked up
                yield name, sys.modules[name]

    def _parts_seen_widely(self, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, type):
            if _is_users(value.__module__):
                yield from vars(value).items()
                yield from ((base.__name__, base) for base in value.__bases__)
                yield "metaclass", type(value)
            return
        if isinstance(value, np.ndarray):
            if value.dtype == object:
                yield from ((str(i), item) for i, item in enumerate(value.flat))
            return
        if isinstance(value, weakref.ref):
            yield "of", value()
            return
        if isinstance(value, contextvars.ContextVar):
            yield "value", value.get(None)
            return
        if isinstance(value, Mapping):
            yield from ((str(key), part) for key, part in _items(value.items))
            yield from (("key", key) for key in _items(value.keys))
        elif isinstance(value, list | tuple | set | frozenset | collections.deque):
            yield from ((str(i), item) for i, item in enumerate(_items(value.__iter__)))
        kind = type(value)
        if _top(kind.__module__) != "builtins" and not _is_followed(value):
            return
        yield from getattr(value, "__dict__", {}).items()
        yield kind.__name__, kind
        if _top(kind.__module__) in _LIBRARIES - {"builtins"}:
            return
        # Slots, caches, iterators: whatever the collector sees.
        for i, part in enumerate(gc.get_referents(value)):
            if part is not kind and not (isinstance(part, dict) and "__builtins__" in part):
                yield str(i), part


def _items(items: Callable[[], Iterable[Any]]) -> list[Any]:
    try:
        return list(items())
    except Exception:  # code of the user, or a container that another thread is changing
        return []


def _named(code: types.CodeType, constants: bool) -> Iterator[str]:
    """Names that a function's code uses, and then, if asked for, its strings."""
    codes = list(_codes(code))
    yield from (name for each in codes for name in each.co_names)
    if constants:
        strings = (constant for each in codes for constant in each.co_consts)
        yield from (constant for constant in strings if isinstance(constant, str))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _top(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _is_followed(value: Any) -> bool:
    top = _top(type(value).__module__)
    return top in _FOLLOWED_LIBRARIES or top not in _LIBRARIES


@functools.cache
def _is_users(module: str | None) -> bool:
    """Whether a module is the user's code: neither this project's, nor Python's, nor installed."""
    top = _top(module)
    if top in _LIBRARIES or top in sys.stdlib_module_names - {"__main__"}:
        return False
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return not file.startswith(_INSTALLED)


def held_beside_params(found: list[tuple[str, nn.Module]]) -> dict[str, Held]:
    """
    What a step may read of these nets that is not in the param store, by name.

    A net is called as in the store where its params are there, else by its path.

    :param found: as :func:`find_modules` returns.
    """
    in_store = {id(param) for param in _parents.stored_params().values()}
    held: dict[str, Held] = {}
    seen: set[int] = set()
    for path, root in found:
        base = _name_in_store(root)
        for prefix, module in root.named_modules():
            if id(module) in seen:
                continue
            seen.add(id(module))
            for name, tensor in _own(module):
                if tensor is not None and (id(tensor) in in_store or nn.parameter.is_lazy(tensor)):
                    continue
                parts = [part for part in (prefix, name) if part]
                key = ".".join([path if base is None else base, *parts]).lstrip(".")
                if key in held:
                    key = ".".join([path, *parts])
                held[key] = Held(module, tensor)
    return held


def _own(module: nn.Module) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Params, lasting buffers and state of the module's own making, without submodules."""
    for name, param in module._parameters.items():
        if param is not None:
            yield name, param
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        yield "_extra_state", None


def _name_in_store(root: nn.Module) -> str | None:
    store = pyro.get_param_store()
    for name, param in root.named_parameters():
        stored = store.param_name(param)
        ending = name.removesuffix("_unconstrained")
        if stored is not None and stored.replace(_DIVIDER, ".").endswith(ending):
            return stored.replace(_DIVIDER, ".").removesuffix(ending).rstrip(".")
    return None


def strangers(found: list[tuple[str, nn.Module]]) -> list[str]:
    """Params of the store that belong to a net that was not found."""
    owned = {id(param) for _, root in found for param in root.parameters()}
    return [
        name
        for name, param in pyro.get_param_store().named_parameters()
        if _is_of_module(name, param) and id(param) not in owned
    ]


def unreached(
    found: list[tuple[str, nn.Module]], called: list[nn.Module]
) -> list[tuple[nn.Module, list[str]]]:
    """
    Modules that were called, hold what is in no store, and are none of those found; with its names.

    :param found: as :func:`find_modules` returns.
    :param called: the modules.
    """
    reached = {id(part) for _, root in found for part in root.modules()}
    in_store = {id(param) for param in _parents.stored_params().values()}
    pairs = []
    for module in called:
        if id(module) not in reached:
            names = [name for name, tensor in _own(module) if id(tensor) not in in_store]
            if names:
                pairs.append((module, names))
    return pairs


def _is_of_module(name: str, param: torch.Tensor) -> bool:
    return _DIVIDER in name or ("." in name and isinstance(param, nn.Parameter))
