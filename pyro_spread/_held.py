# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Nested dicts of tensors that a module keeps beside its params."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def mapped(fn: Callable[[Any], Any], tree: Any) -> Any:
    """
    Nested dicts with a function applied to every leaf.

    :param fn: the function.
    :param tree: the dicts, or a leaf.
    """
    if isinstance(tree, Mapping):
        return {key: mapped(fn, value) for key, value in tree.items()}
    return fn(tree)


class Held(torch.nn.Module):
    """
    Nested dicts of tensors, as buffers.

    :param tree: the dicts. Their keys have names of plates in them, of which not all may be names
        of parts of a module.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        super().__init__()
        self._keys: dict[str, str] = {}
        for number, (key, value) in enumerate(tree.items()):
            name = f"part_{number}" if "." in key or hasattr(self, key) else key
            self._keys[name] = key
            if isinstance(value, Mapping):
                self.add_module(name, Held(value))
            else:
                self.register_buffer(name, value)

    def tree(self) -> dict[str, Any]:
        """The dicts."""
        parts = {name: getattr(self, name) for name in self._keys}
        return {
            self._keys[name]: part.tree() if isinstance(part, Held) else part
            for name, part in parts.items()
        }
