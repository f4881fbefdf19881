# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Find the nets that an SVI uses, and what they hold in addition to the params of the store."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from torch import nn

from pyro_spread import _parents

# What these define leads to no net of the user, but to half of the interpreter.
LIBRARIES = frozenset(
    ("torch", "pyro", "numpy", "scipy", "builtins", "logging", "pyro_spread", "spread_core")
) | {"spread_analysis"}
_FOLLOWED_LIBRARIES = frozenset(("pyro", "pyro_spread", "functools"))  # objects that wrap a model
_MOST_ITEMS, _MOST_OBJECTS, _MOST_LEVELS = 1000, 20_000, 16
OWN = frozenset(vars(nn.Module()))
_DIVIDER = "$$$"


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

    :param svi: the SVI.
    :param extra: more nets by name.
    :param wide: whether to go on where the first versions of this function did not go; what is
        found there comes last, and what they found has the same path as ever.
    """
    walk = _Walk()
    for name, module in (extra or {}).items():
        walk(module, name, 0)
    starts = {"model": svi.model, "guide": svi.guide, "loss": loss_of(svi)}
    for name, start in starts.items():
        walk(start, name, 0)
    if not wide:
        return walk.found
    from pyro_spread._wider_walk import WiderWalk

    return walk.found + WiderWalk(walk.found)(starts)


class _Walk:
    """Search functions, partials, containers and plain objects; nothing is called."""

    def __init__(self) -> None:
        self.found: list[tuple[str, nn.Module]] = []
        self._seen: dict[int, Any] = {}  # the objects too, so that no id is used twice

    def __call__(self, value: Any, path: str, level: int) -> None:
        skipped = isinstance(value, torch.Tensor | types.ModuleType | type | str | bytes | int)
        if skipped or id(value) in self._seen or level > _MOST_LEVELS:
            return
        if len(self._seen) >= _MOST_OBJECTS:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module):
            self.found.append((path, value))
        for name, part in _parts(value):
            self(part, f"{path}.{name}", level + 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        for module in value.modules():  # an autoguide keeps its model in a tuple
            yield from ((k, v) for k, v in vars(module).items() if k not in OWN)
    elif isinstance(value, types.MethodType):
        yield "self", value.__self__
        yield "function", value.__func__
    elif isinstance(value, functools.partial):
        yield "function", value.func
        yield from ((str(i), v) for i, v in enumerate(value.args))
        yield from value.keywords.items()
        yield from vars(value).items()
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, Mapping):
        if len(value) <= _MOST_ITEMS:
            yield from ((str(k), v) for k, v in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        if len(value) <= _MOST_ITEMS:
            yield from ((str(i), v) for i, v in enumerate(value))
    elif hasattr(value, "__dict__") and is_followed(type(value)):
        yield from vars(value).items()


def _parts_of_function(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from ((f"default{i}", v) for i, v in enumerate(fn.__defaults__ or ()))
    yield from (fn.__kwdefaults__ or {}).items()
    yield from vars(fn).items()
    if (fn.__module__ or "").partition(".")[0] not in LIBRARIES:
        for name in global_names(fn.__code__):
            if name in fn.__globals__:
                yield name, fn.__globals__[name]


def global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from global_names(constant)


def is_followed(cls: type) -> bool:
    package = cls.__module__.partition(".")[0]
    return package in _FOLLOWED_LIBRARIES or package not in LIBRARIES


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
