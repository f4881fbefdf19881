# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Check an adversarial ELBO estimate with a fresh critic, and compute the gap between the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from numpyro_spread.ratio.adapters import SiteValues
from spread_analysis.critic import EvidenceReport


def fit_critic(
    critic_loss: Callable[[Any, jax.Array], jax.Array],
    initial: Any,
    rng_keys: jax.Array,
    learning_rate: float,
) -> Any:
    """
    Params after one step of Adam per random key.

    :param critic_loss: from params and a random key to what the critic minimises.
    :param initial: initial params.
    :param rng_keys: random keys of the steps.
    :param learning_rate: of Adam at the first step; it falls linearly to zero.
    """
    falling = optax.linear_schedule(learning_rate, 1e-2 * learning_rate, len(rng_keys))
    optim = optax.adam(falling)

    def step(state: Any, rng_key: jax.Array) -> tuple[Any, None]:
        critic, optim_state = state
        grads = jax.grad(critic_loss)(critic, rng_key)
        updates, optim_state = optim.update(grads, optim_state, critic)
        return (optax.apply_updates(critic, updates), optim_state), None

    state = initial, optim.init(initial)
    (critic, _), _ = jax.jit(lambda state: lax.scan(step, state, rng_keys))(state)
    return critic


def compare_estimates(
    judge: Callable[[jax.Array], tuple[jax.Array, jax.Array]], rng_keys: jax.Array
) -> EvidenceReport:
    """
    The reported estimate and the best of others, over held-out draws.

    :param judge: from a random key to ELBO estimates at the same draws: as it is reported, and with
        each of the other critics.
    :param rng_keys: random keys of the draws.
    """
    reported, others = jax.jit(lambda keys: lax.map(judge, keys))(rng_keys)
    return EvidenceReport.from_draws(reported, others.T)


class Silent:
    """A critic that says nothing: the guide is taken for its contrast."""

    def apply(self, params: Any, values: SiteValues, args: Any, kwargs: Any) -> jax.Array:
        """Zeros of the batch shape."""
        return jnp.zeros(values.batch_shape)
