# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Encode state as JSON and named tensors, and decode it; neither can contain code."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from spread_core.messages import checkpoints

#: From a leaf to its kind and tensor, or None if it is not an array.
ToTensor = Callable[[str, Any], tuple[str, Any] | None]
#: From kind and tensor to the leaf.
FromTensor = Callable[[str, Any], Any]

_TAG = "!"
_LARGEST_INT_BITS = 4096
_DICTS = (dict, OrderedDict, defaultdict)


class MalformedError(ValueError):
    """JSON that :func:`encode` does not write."""


def encode(value: Any, where: str, tensors: dict[str, Any], to_tensor: ToTensor) -> Any:
    """
    ``value`` as JSON in which tensors stand by name.

    :param value: None, bool, int, float, str, list, tuple, dict and Counter, of arrays in the end.
    :param where: what it is, for names of tensors and for errors.
    :param tensors: takes the tensors by name.
    :param to_tensor: from a leaf to its kind and tensor.
    :raises TypeError: naming what cannot be encoded.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int and value.bit_length() <= _LARGEST_INT_BITS:
        return value
    if kind is float:
        return value if math.isfinite(value) else {_TAG: "float", "is": repr(value)}
    if kind in (list, tuple):
        items = [encode(v, f"{where}/{i}", tensors, to_tensor) for i, v in enumerate(value)]
        return items if kind is list else {_TAG: "tuple", "items": items}
    if kind in _DICTS or kind is Counter:
        plain = kind is not Counter and all(type(k) is str and k != _TAG for k in value)
        if plain:
            return {k: encode(v, f"{where}/{k}", tensors, to_tensor) for k, v in value.items()}
        pairs = [
            [_encode_key(k, where), encode(v, f"{where}/{k}", tensors, to_tensor)]
            for k, v in value.items()
        ]
        return {_TAG: "counter" if kind is Counter else "dict", "items": pairs}
    found = to_tensor(where, value)
    if found is None:
        raise TypeError(checkpoints.unencodable(where, value))
    name = where
    while name in tensors:  # a key may hold the separator
        name += "'"
    tensors[name] = found[1]
    return {_TAG: "tensor", "kind": found[0], "name": name}


def _encode_key(key: Any, where: str) -> Any:
    if type(key) not in (str, int, bool):
        raise TypeError(checkpoints.unencodable(f"{where}: key {key!r}", key))
    return key


def decode(value: Any, tensors: Mapping[str, Any], from_tensor: FromTensor) -> Any:
    """
    Decode the result of :func:`encode`.

    :param value: parsed JSON.
    :param tensors: by name.
    :param from_tensor: from kind and tensor to the leaf.
    :raises MalformedError: if ``encode`` did not write it.
    """
    if isinstance(value, list):
        return [decode(item, tensors, from_tensor) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: decode(item, tensors, from_tensor) for key, item in value.items()}
    tag, items = value[_TAG], value.get("items")
    if tag == "float" and value.get("is") in ("inf", "-inf", "nan"):
        return float(value["is"])
    if tag == "tuple" and isinstance(items, list):
        return tuple(decode(item, tensors, from_tensor) for item in items)
    if tag in ("dict", "counter") and isinstance(items, list):
        return _decode_pairs(tag, items, tensors, from_tensor)
    if tag == "tensor" and isinstance(value.get("name"), str) and value["name"] in tensors:
        return from_tensor(str(value.get("kind")), tensors[value["name"]])
    raise MalformedError(f"{str(value)[:80]} means nothing")


def _decode_pairs(
    tag: str, items: list[Any], tensors: Mapping[str, Any], from_tensor: FromTensor
) -> Any:
    result: dict[Any, Any] = Counter() if tag == "counter" else {}
    for pair in items:
        if not isinstance(pair, list) or len(pair) != 2 or isinstance(pair[0], list | dict):
            raise MalformedError(f"{str(pair)[:80]} is no key with its value")
        result[pair[0]] = decode(pair[1], tensors, from_tensor)
    return result
