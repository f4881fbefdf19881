# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""From compiled steps to a monitor on the host."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax, random

_WATCH_EVERY = 16


def report(
    rng_key: jax.Array, observe: Callable[..., object], amiss: jax.Array, *values: jax.Array
) -> None:
    """
    Call ``observe`` with floats, if something is amiss and now and then.

    Calling the host takes time, also inside jit and scan. Without any call when nothing is amiss
    a monitor would add up bad steps that are far apart.

    :param rng_key: random key.
    :param observe: called with ``values``.
    :param amiss: a boolean scalar.
    :param values: scalars.
    """

    def on_host(*values: jax.Array) -> None:
        observe(*map(float, values))

    def call() -> None:
        jax.debug.callback(on_host, *values)

    lax.cond(amiss | random.bernoulli(rng_key, 1 / _WATCH_EVERY), call, lambda: None)
