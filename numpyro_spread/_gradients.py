# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Gradients that must not be asked for."""

from __future__ import annotations

from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero


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
