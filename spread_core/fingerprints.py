# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the arguments of a call are, in few words that can be stored and compared."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def describe_arguments(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, str]]:
    """
    Arguments by name: what they are, and digests of the numbers in them.

    Numbers by themselves are told by their values, arrays by type and shape: their values are in
    the digest. Of objects of other kinds the class is told.

    :param fn: the model.
    :param args: positional arguments.
    :param kwargs: keyword arguments.
    """
    try:
        bound = inspect.signature(getattr(fn, "forward", fn)).bind(*args, **kwargs)
        bound.apply_defaults()
        named = dict(bound.arguments)
    except (TypeError, ValueError):  # it has no signature, or is called otherwise
        named = {f"*args[{i}]": arg for i, arg in enumerate(args)} | dict(kwargs)
    return {name: _told(v) for name, v in named.items()}, {n: _digest(v) for n, v in named.items()}


def _told(value: Any) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    array = _as_array(value)
    if array is not None:
        return f"{array.dtype}{list(array.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_told(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(_told, value))})"
    return type(value).__qualname__


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    for leaf in _leaves(value):
        digest.update(leaf.tobytes())
    return digest.hexdigest()[:16]


def _leaves(value: Any) -> Any:
    array = None if isinstance(value, _PLAIN) else _as_array(value)
    if array is not None:
        yield array
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(part)


def _as_array(value: Any) -> np.ndarray[Any, Any] | None:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return None
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, RuntimeError):  # a random key, or a tensor that NumPy cannot read
        return None
    return None if array.dtype.hasobject else array
