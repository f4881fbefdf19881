# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Call the host out of compiled steps, at no cost for those that do not call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numpyro_spread.noise.base import is_concrete


def call_if(condition: Any, call: Callable[..., object], *values: Any) -> jax.Array:
    """
    Call the host if ``condition`` holds: now, or at run time in compiled code.

    A callback with effects, such as ``jax.debug.callback``, would take a millisecond from every
    step, also from those that do not call: JAX dispatches what has effects by its slow way. A pure
    one does not, but the compiler drops it if nothing needs its result.

    :param condition: a boolean scalar.
    :param call: called with ``values``, as arrays of NumPy of a floating type; under ``vmap`` once
        for each element whose condition holds. What it raises comes out of compiled code as a
        ``jax.errors.JaxRuntimeError``.
    :param values: small arrays; no gradient goes through them.
    :return: 1.0. Multiply what depends on the call by it.
    """
    seen = lax.stop_gradient((condition, *values))
    if is_concrete(*seen):
        if seen[0]:
            call(*(np.asarray(value, float) for value in seen[1:]))
        return jnp.ones(())
    shapes = [np.shape(value) for value in values]
    ends = np.cumsum([1, *(math.prod(shape) for shape in shapes)])
    # One array: JAX puts each on a device again before the call, which takes longer than the rest.
    packed = jnp.concatenate([jnp.ravel(each).astype(float) for each in seen])

    def on_host(packed: Any) -> np.ndarray:
        # In front are the axes of vmap, if any.
        *batch, size = np.shape(packed)
        for row in np.asarray(packed).reshape(-1, size):
            holds, *parts = np.split(row, ends[:-1])
            if holds:
                call(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))
        return np.ones(batch, packed.dtype)

    one = jax.ShapeDtypeStruct((), packed.dtype)
    return lax.cond(
        seen[0],
        lambda packed: jax.pure_callback(on_host, one, packed, vmap_method="broadcast_all"),
        lambda packed: jnp.ones((), packed.dtype),
        packed,
    )
