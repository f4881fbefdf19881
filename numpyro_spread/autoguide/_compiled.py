# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Draws and densities of a guide's sites, compiled once where the guide itself is not."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def compiled(method: Callable[..., Any], site: Any, array: jax.Array, *static: Any) -> Any:
    """
    ``method(site, array, *static)``.

    Run one operation after another, it would compile its loops anew in every call.

    :param method: of the site.
    :param site: a site whose ``conditional`` is a dataclass.
    :param array: the key or value.
    :param static: hashable arguments.
    """
    fields = {
        f.name: getattr(site.conditional, f.name) for f in dataclasses.fields(site.conditional)
    }
    arrays = {name: value for name, value in fields.items() if _is_arrays(value)}
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((arrays, array))):
        return method(site, array, *static)
    return _run(method, _Rest(site, fields, arrays), static, array, arrays)


class _Rest:
    """A site without its arrays: the same for the same objects in their place."""

    def __init__(self, site: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.site = copy.copy(site)
        self.site.conditional = dataclasses.replace(site.conditional, **dict.fromkeys(arrays))
        rest = [value for name, value in fields.items() if name not in arrays]
        # They live as long as this does, so that no other object has their id.
        same = (value if isinstance(value, int | str) else id(value) for value in rest)
        self._key = (type(site.conditional), site.shell, *arrays, *same)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rest) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    method: Callable[..., Any],
    rest: _Rest,
    static: tuple[Any, ...],
    array: jax.Array,
    arrays: dict[str, Any],
) -> Any:
    site = copy.copy(rest.site)
    site.conditional = dataclasses.replace(site.conditional, **arrays)
    return method(site, array, *static)


def _is_arrays(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
