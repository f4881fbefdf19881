# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Gradients that are handed over, and gradients that must not be asked for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


@jax.custom_vjp
def with_gradients(value: jax.Array, tree: Any, grads: Any) -> jax.Array:
    """
    ``value``, whose gradient in ``tree`` is said to be ``grads``.

    :param value: a scalar that is not differentiated itself.
    :param tree: pytree of floating arrays.
    :param grads: pytree of the same structure.
    """
    return value


def _forward(value: jax.Array, tree: Any, grads: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
    return value, (grads, value)


def _backward(residuals: tuple[Any, jax.Array], cotangent: jax.Array) -> tuple[Any, Any, Any]:
    grads, value = residuals
    scaled = jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), grads)
    return jnp.zeros_like(value), scaled, jax.tree.map(jnp.zeros_like, grads)


with_gradients.defvjp(_forward, _backward)


def refuse_gradient(tree: Any, error: Exception) -> Any:
    """
    ``tree`` as it is; whoever differentiates through any of its arrays gets ``error``.

    :param tree: a pytree, such as a distribution.
    :param error: raised while JAX traces the derivative.
    """

    @jax.custom_jvp
    def identity(*leaves: Any) -> Any:
        return leaves

    def rule(primals: Any, tangents: Any) -> Any:
        if any(not isinstance(tangent, SymbolicZero) for tangent in tangents):
            raise error
        return primals, tangents

    identity.defjvp(rule, symbolic_zeros=True)
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, identity(*leaves)) if leaves else tree
