# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Describe a constraint: its class, bounds, dims and the constraints inside it."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

_CLASS = "is"
_MOST_LEVELS = 8
_SHOWN = 4


def describe(value: Any, to_numpy: Callable[[Any], np.ndarray | None], level: int = 0) -> Any:
    """
    A constraint or transform as numbers, strings, lists and dicts, equal for equal ones.

    :param value: the constraint.
    :param to_numpy: from an array of the backend to NumPy's; None for all else.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return float(value)
    array = to_numpy(value)
    if array is not None:
        return float(array) if array.ndim == 0 else array.astype(np.float64)
    if level > _MOST_LEVELS:
        return type(value).__name__
    if isinstance(value, list | tuple):
        return [describe(item, to_numpy, level + 1) for item in value]
    if isinstance(value, type | FunctionType) or not hasattr(value, "__dict__"):
        return type(value).__name__
    # The inverse is a link to the object itself.
    parts = {k: v for k, v in sorted(vars(value).items()) if k != "_inv"}
    named = {name: describe(part, to_numpy, level + 1) for name, part in parts.items()}
    return {_CLASS: type(value).__name__.lstrip("_"), **named}


def same(one: Any, other: Any) -> bool:
    """Whether two descriptions are equal; either may be any value of a file."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        numbers = one.dtype.kind == other.dtype.kind == "f"
        return numbers and np.array_equal(one, other, equal_nan=True)
    return type(one) is type(other) and bool(one == other or (one != one and other != other))


def text(value: Any) -> str:
    """A description in one short line."""
    if isinstance(value, dict):
        parts = ", ".join(f"{key}={text(part)}" for key, part in value.items() if key != _CLASS)
        return f"{value.get(_CLASS, '')}({parts})"
    if isinstance(value, list):
        return f"[{', '.join(map(text, value[:_SHOWN]))}{', ...' if len(value) > _SHOWN else ''}]"
    if isinstance(value, np.ndarray):
        return text(value.tolist()) if value.ndim < 2 else f"values of shape {list(value.shape)}"
    return f"{value:.9g}" if isinstance(value, float) else str(value)[:80]
