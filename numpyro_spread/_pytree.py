# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Small immutable objects that JAX sees through."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


def widened(value: Any) -> Any:
    """
    Values in float16 or bfloat16 as float32, all others as they are.

    Three digits are enough for a net's activations, but not for what is summed or subtracted after.

    :param value: an array, of JAX or NumPy.
    """
    if jnp.result_type(value) in (jnp.float16, jnp.bfloat16):
        return jnp.asarray(value, jnp.float32)
    return value


class FieldsAsPytree:
    """Makes every dataclass derived from it a pytree, its fields as children."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_pytree_node(cls, cls._flatten_tree, cls._unflatten_tree)

    @classmethod
    def _fields(cls) -> list[str]:
        # Asked for late: the dataclass decorator runs after __init_subclass__.
        return [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @staticmethod
    def _flatten_tree(kernel: Any) -> tuple[tuple[Any, ...], None]:
        return tuple(getattr(kernel, name) for name in kernel._fields()), None

    @classmethod
    def _unflatten_tree(cls, _: None, children: Any) -> Any:
        # Without __post_init__: JAX unflattens with placeholders that no check would pass.
        kernel = object.__new__(cls)
        for name, child in zip(cls._fields(), children, strict=True):
            object.__setattr__(kernel, name, child)
        return kernel
