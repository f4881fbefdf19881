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


def register_fields(cls: type) -> None:
    """
    Make a dataclass a pytree, its fields as children.

    :param cls: the class; its decorator may run later.
    """

    def flatten(instance: Any) -> tuple[tuple[Any, ...], None]:
        return tuple(getattr(instance, name) for name in field_names(cls)), None

    def unflatten(_: None, children: Any) -> Any:
        # Without __post_init__: JAX unflattens with placeholders that no check would pass.
        instance: Any = object.__new__(cls)
        for name, child in zip(field_names(cls), children, strict=True):
            object.__setattr__(instance, name, child)
        return instance

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)


def field_names(cls: Any) -> list[str]:
    """
    Names of the fields of a dataclass.

    :param cls: the class.
    """
    return [field.name for field in dataclasses.fields(cls)]


class FieldsAsPytree:
    """Makes every dataclass derived from it a pytree, its fields as children."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register_fields(cls)

    @classmethod
    def _fields(cls) -> list[str]:
        return field_names(cls)
