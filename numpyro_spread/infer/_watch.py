# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Send values from compiled steps to a monitor on the host."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_spread._host_calls import call_if
from spread_core.monitors import LAGGING_ACCURACY, FalseEvidenceMonitor, LogitRangeMonitor

_WATCH_EVERY = 16


def watched(
    loss: jax.Array,
    rng_key: jax.Array,
    observe: Callable[..., object],
    amiss: jax.Array,
    *values: jax.Array,
) -> jax.Array:
    """
    ``loss``; ``observe`` is called with floats, if something is amiss and now and then.

    Calling the host takes time, also inside jit and scan. Without any call when nothing is amiss
    a monitor would add up bad steps that are far apart.

    :param loss: a scalar. The call is made if it is used, or its gradient.
    :param rng_key: random key.
    :param observe: called with ``values``.
    :param amiss: a boolean scalar.
    :param values: scalars.
    """

    def on_host(*values: np.ndarray) -> None:
        observe(*map(float, values))

    is_due = amiss | random.bernoulli(rng_key, 1 / _WATCH_EVERY)
    loss = jnp.asarray(loss)
    return loss * call_if(is_due, on_host, *values).astype(loss.dtype)


def watch_lag(
    loss: jax.Array,
    rng_key: jax.Array,
    lag: FalseEvidenceMonitor,
    span: LogitRangeMonitor,
    seen: tuple[jax.Array, jax.Array, jax.Array],
) -> jax.Array:
    """
    ``loss``; the monitors of a contrast look at its critic.

    :param loss: as for :func:`watched`.
    :param rng_key: random key.
    :param lag: gets how often the critic is right.
    :param span: gets its least and its largest logit.
    :param seen: these three numbers, for each particle.
    """
    right, low, high = seen[0].mean(), seen[1].min(), seen[2].max()

    def observe(right: float, low: float, high: float) -> None:
        lag.observe(right)
        span.observe(low, high)

    amiss = (right >= LAGGING_ACCURACY) | span.suspects(low, high)
    return watched(loss, rng_key, observe, amiss, right, low, high)
