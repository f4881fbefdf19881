# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Data inside an argument: batches that are dicts, lists, tuples or objects; plain Python."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

Part = int | str
#: How ``data=`` says where data are: ``"x"``, ``"batch.image"`` or ``("batch", "image")``.
Where = str | Sequence[Part]


def parts_of(where: Where, arguments: Sequence[str]) -> tuple[Part, ...]:
    """
    An argument's name and the way on from there; what is an argument's whole name is that.

    :param where: as in ``data=``.
    :param arguments: names of the arguments of a call.
    """
    if isinstance(where, str):
        return (where,) if where in arguments else tuple(where.split("."))
    return tuple(where)


def spelled(parts: Sequence[Part]) -> str:
    """How messages spell a way into an argument."""
    return ".".join(str(part) for part in parts)


def child(container: Any, part: Part) -> Any:
    """
    The element of ``container`` at ``part``: a key, a number in a sequence, or an attribute.

    :raises LookupError: if it holds no such thing.
    """
    if isinstance(container, Mapping):
        return container[_key(container, part)]
    number = _number(part)
    if isinstance(container, list | tuple) and number is not None:
        return container[number]
    if isinstance(part, str) and hasattr(container, part):
        return getattr(container, part)
    raise LookupError(part)


def with_child(container: Any, part: Part, value: Any) -> Any:
    """A copy of ``container`` that holds ``value`` at ``part``; the rest is shared."""
    if isinstance(container, MutableMapping):
        changed = copy.copy(container)
        changed[_key(container, part)] = value
        return changed
    if isinstance(container, Mapping):
        kind: Any = type(container)
        return kind({**container, _key(container, part): value})
    number = _number(part)
    if isinstance(container, list | tuple) and number is not None:
        values = list(container)
        values[number] = value
        if isinstance(container, tuple):
            make = getattr(type(container), "_make", type(container))  # a named tuple has one
            return make(values)
        like: list[Any] = copy.copy(container)
        like[:] = values
        return like
    if isinstance(container, tuple):
        return container._replace(**{str(part): value})  # type: ignore[attr-defined]
    if dataclasses.is_dataclass(container):
        return dataclasses.replace(container, **{str(part): value})  # type: ignore[type-var]
    changed = copy.copy(container)
    setattr(changed, str(part), value)
    return changed


def described(container: Any) -> str:
    """The possible choices, in a few words."""
    if isinstance(container, Mapping):
        return f"the keys {sorted(map(str, container))}"
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return f"the fields {list(container._fields)}"
    if isinstance(container, list | tuple):
        return f"{len(container)} elements"
    if dataclasses.is_dataclass(container):
        return f"the fields {[field.name for field in dataclasses.fields(container)]}"
    return f"the type {type(container).__name__}"


def _key(container: Mapping[Any, Any], part: Part) -> Any:
    if part not in container and (number := _number(part)) is not None and number in container:
        return number
    return part


def _number(part: Part) -> int | None:
    if isinstance(part, int):
        return part
    return int(part) if part.lstrip("-").isdigit() else None
