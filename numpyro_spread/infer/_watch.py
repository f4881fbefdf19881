# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Send values from compiled steps to a monitor on the host."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_spread._host_calls import call_if
from spread_core.monitors import (
    LAGGING_ACCURACY,
    EvidenceGapMonitor,
    FalseEvidenceMonitor,
    LogitRangeMonitor,
)

_WATCH_EVERY = 16
#: Looks at a gap are noisy, and many are averaged.
GAP_EVERY = 8


def looks_now(rng_key: jax.Array, every: int = _WATCH_EVERY) -> jax.Array:
    """
    Whether this step is one of those that are looked at now and then.

    :param rng_key: random key.
    :param every: one of how many steps is.
    """
    return random.bernoulli(rng_key, 1 / every)


def watched(
    loss: jax.Array,
    looks: jax.Array,
    observe: Callable[..., object],
    amiss: jax.Array,
    *values: jax.Array,
) -> jax.Array:
    """
    ``loss``; ``observe`` is called with floats, if something is amiss and now and then.

    Calling the host takes time, also inside jit and scan. Without any call when nothing is amiss
    a monitor would add up bad steps that are far apart.

    :param loss: a scalar. The call is made if it is used, or its gradient.
    :param looks: as :func:`looks_now` says.
    :param observe: called with ``values``.
    :param amiss: a boolean scalar.
    :param values: scalars.
    """

    def on_host(*values: np.ndarray) -> None:
        observe(*map(float, values))

    loss = jnp.asarray(loss)
    return loss * call_if(amiss | looks, on_host, *values).astype(loss.dtype)


def watch_lag(
    loss: jax.Array,
    looks: jax.Array,
    lag: FalseEvidenceMonitor,
    span: LogitRangeMonitor,
    seen: tuple[jax.Array, jax.Array, jax.Array],
    gap: tuple[EvidenceGapMonitor, jax.Array] | None = None,
) -> jax.Array:
    """
    ``loss``; the monitors of a contrast look at its critic.

    :param loss: as for :func:`watched`.
    :param looks: as for :func:`watched`.
    :param lag: gets how often the critic is right.
    :param span: gets its least and its largest logit.
    :param seen: these three numbers, for each particle.
    :param gap: a monitor, and by how many nats the critic lags, in how many data, if that can be
        known; NaN unless ``looks``.
    """
    right, low, high = seen[0].mean(), seen[1].min(), seen[2].max()
    looked = jnp.full(2, math.nan) if gap is None else gap[1]

    def observe(right: float, low: float, high: float, nats: float, num_data: float) -> None:
        span.observe(low, high)
        if gap is not None:
            gap[0].observe(nats, num_data)
        may_lag = gap is None or gap[0].has_doubts()
        lag.observe(right if may_lag else 0.0)

    amiss = (right >= LAGGING_ACCURACY) | span.suspects(low, high)
    return watched(loss, looks, observe, amiss, right, low, high, *looked)
