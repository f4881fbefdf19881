# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Find state of an optimiser that its ``state_dict`` leaves out, so that a checkpoint would lose it.
"""

from __future__ import annotations

import copyreg
import functools
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim

from pyro_spread import _optimiser_state as optimisers
from pyro_spread import _parents
from pyro_spread._optimiser_trial import is_of_library
from pyro_spread.optim import Composite
from spread_core.messages import checkpoints

_ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
# Torch notes here that a step was made, to warn of one order of calls, and load_state_dict adds
# the other.
_NOTES = frozenset(("_opt_called", "differentiable"))
# Attributes of every optimiser and schedule of Pyro.
_OF_PYRO = vars(
    pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.SGD, "optim_args": lambda name: {}, "gamma": 1.0}
    )
).keys()


def refuse_unsaved(optim: PyroOptim) -> None:
    """
    Refuse an optimiser that its own state does not restore completely.

    Each optimiser of torch is built anew and given the state, as a load does it, and compared with
    the living one in all that both hold: attributes, closures and objects inside them.

    :param optim: the optimiser.
    :raises ValueError: naming the class and the attribute.
    """
    if isinstance(optim, Composite):
        for part in optim.parts().values():
            refuse_unsaved(part)
        return
    if optimisers.keeps_own_state(optim):
        return
    for name, value in _attributes(optim):
        if not is_plain(value) and (found := holder(value)):
            where = f"its attribute {name!r} is or holds a {found}"
            raise ValueError(checkpoints.unsaved_optimiser(type(optim).__name__, where))
    params = pyro.get_param_store()
    for param, live in optim.optim_objs.items():
        if not is_of_library(optim):
            clip = _parents.clipping_of(optim, param)
            if found := _difference(optim.grad_clip.get(param), clip, "gradient clipping", {}):
                raise ValueError(checkpoints.unsaved_optimiser(type(optim).__name__, found))
        if _is_known(live):
            continue
        again = _parents.optimiser_of(optim, param)
        _parents.load_optimiser_state(again, _parents.optimiser_state(live))
        if found := _difference(live, again, "", {}):
            where = f"'{found}' of param '{params.param_name(param)}' is not in it"
            raise ValueError(checkpoints.unsaved_optimiser(type(live).__name__, where))


def attributes(optim: PyroOptim) -> dict[str, Any]:
    """Numbers, strings and containers of them that a user's class of optimiser keeps for itself."""
    if isinstance(optim, Composite):
        return {role: attributes(part) for role, part in optim.parts().items()}
    if optimisers.keeps_own_state(optim):
        return {}
    return {name: value for name, value in _attributes(optim) if is_plain(value)}


def fit(saved: Any, live: dict[str, Any]) -> bool:
    """Whether :func:`set_attributes` may take these: all plain, and of the types that are there."""
    if not isinstance(saved, dict) or not is_plain(saved):
        return False
    return all(name not in live or _fits(value, live[name]) for name, value in saved.items())


def _fits(value: Any, live: Any) -> bool:
    if isinstance(live, dict):
        return fit(value, live)
    numbers = type(value) in (int, float) and type(live) in (int, float)
    return numbers or type(value) is type(live) or live is None


def set_attributes(optim: PyroOptim, saved: dict[str, Any]) -> None:
    """
    Put back what :func:`attributes` returned.

    :param optim: the optimiser.
    :param saved: what was returned; files of earlier versions have nothing of it.
    """
    if isinstance(optim, Composite):
        for role, part in optim.parts().items():
            set_attributes(part, saved.get(role, {}))
        return
    names = {name for name, _ in _attributes(optim)}
    vars(optim).update({name: value for name, value in saved.items() if name in names})


def _attributes(optim: PyroOptim) -> Iterator[tuple[str, Any]]:
    if not is_of_library(optim):
        yield from ((k, v) for k, v in vars(optim).items() if k not in _OF_PYRO)


def _is_known(optimizer: Any) -> bool:
    base = getattr(optimizer, "optimizer", optimizer)
    if not (is_of_library(optimizer) and is_of_library(base)):
        return False
    # Schedules may hold functions of the user, with what these remember.
    return base is optimizer or all(
        is_plain(value) or value is base for value in vars(optimizer).values()
    )


def is_plain(value: Any) -> bool:
    """Whether a value is made of numbers, strings and built-in containers alone."""
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        return all(type(key) in (str, int, bool) and is_plain(v) for key, v in value.items())
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return type(value) in (type(None), bool, int, float, str)


def holder(value: Any) -> str:
    """Class of what may hold state inside a value; empty if nothing does."""
    if callable(value) and isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return ""
    if isinstance(value, Mapping | list | tuple | Set):
        items = [*value, *value.values()] if isinstance(value, Mapping) else list(value)
        return next((found for item in items if not is_plain(item) and (found := holder(item))), "")
    top = type(value).__module__.partition(".")[0]
    return "" if top in ("logging", "threading", "_thread") else type(value).__name__


def _difference(one: Any, other: Any, path: str, seen: dict[tuple[int, int], Any]) -> str:
    """Where two objects differ in what they hold; empty if they do not."""
    if one is other or (id(one), id(other)) in seen:
        return ""
    seen[id(one), id(other)] = one, other  # kept, so that no id is used twice
    if type(one) is not type(other):
        return path or type(one).__name__
    if isinstance(one, (torch.Tensor, *_ATOMS)):
        return "" if optimisers.contains(other, one) else path
    here, there = _parts(one), _parts(other)
    if here is None or there is None or len(here) != len(there):
        return path
    for (name, mine), (name_of_other, its) in zip(here, there, strict=True):
        if name != name_of_other:
            return _joined(path, name)
        if name not in _NOTES and (found := _difference(mine, its, _joined(path, name), seen)):
            return found
    return ""


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """What an object holds, by name; None if one cannot look into it."""
    if isinstance(value, Mapping):
        named = [(str(k) if isinstance(k, _ATOMS) else "key", k, v) for k, v in value.items()]
        named = [each for each in named if each[0] not in _NOTES]
        pairs = [(name, v) for name, k, v in sorted(named, key=lambda each: each[0])]
        return pairs + [("key", k) for name, k, v in named if name == "key"]
    if isinstance(value, Set):
        atoms = all(isinstance(item, _ATOMS) for item in value)
        items = sorted(value, key=repr) if atoms else list(value)
        return [(str(i), item) for i, item in enumerate(items)]
    if isinstance(value, Sequence) and not isinstance(value, range):
        return [(str(i), item) for i, item in enumerate(value)]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_set(cell)]
        names = value.__code__.co_freevars
        own = [("code", value.__code__), ("defaults", value.__defaults__), ("vars", vars(value))]
        return [*own, *zip(names, cells, strict=False)]
    if isinstance(value, types.MethodType):
        return [("self", value.__self__), ("function", value.__func__)]
    if isinstance(value, functools.partial):
        return [("function", value.func), ("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, weakref.ref):
        return [("of", value())]
    if isinstance(value, torch.Generator):
        return [("state", value.get_state())]
    if isinstance(value, type | types.ModuleType | types.CodeType | types.BuiltinFunctionType):
        return None
    if hasattr(value, "__dict__") or copyreg._slotnames(type(value)):  # type: ignore[attr-defined]
        slots = copyreg._slotnames(type(value))  # type: ignore[attr-defined]
        held = {**getattr(value, "__dict__", {}), **{n: getattr(value, n, None) for n in slots}}
        return [(n, v) for n, v in sorted(held.items()) if n not in _NOTES]
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # what cannot be pickled cannot be seen
        return None
    return [(str(i), list(p) if isinstance(p, Iterator) else p) for i, p in enumerate(reduced[1:])]


def _is_set(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # not assigned yet
        return False
