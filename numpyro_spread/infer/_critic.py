# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Penalties in the loss of every critic, and when they are applied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_spread.ratio._slopes import are_apart, others_move
from numpyro_spread.ratio.adapters import SiteValues
from numpyro_spread.ratio.binding import Bound
from numpyro_spread.ratio.regularizers import Regularizer, Weights
from spread_core.caller_warning import warn_user
from spread_core.messages import players
from spread_core.typing import Args, Kwargs

# Critics that a gradient penalty has met already.
_looked_at: WeakSet[Bound] = WeakSet()


def warn_of_coupling(
    critic: Bound, params: Any, values: SiteValues, args: Args, kwargs: Kwargs
) -> None:
    """Say once per critic that a gradient penalty assumes logits of samples by themselves."""
    if critic in _looked_at:
        return
    _looked_at.add(critic)
    if are_apart(lambda values: critic.apply(params, values, args, kwargs), values):
        return
    if others_move(critic.apply, params, values, args, kwargs):
        warn_user(players.coupled_penalty())


def penalty_in_turn(
    rng_key: jax.Array,
    regularizer: Regularizer | None,
    judge: Callable[[Any, SiteValues], jax.Array],
    params: Any,
    data: SiteValues,
    model: SiteValues,
    weights: Weights,
) -> jax.Array:
    """
    The penalty on the critic whenever it has its turn, else zero; differentiable in ``params``.

    :param judge: from params and values to logits.
    :param data: values of the side with label one, as constants.
    :param model: values of the other side, as constants.
    :param weights: of both sides.
    """
    if regularizer is None:
        return jnp.zeros(())
    every = regularizer.every
    turn_key, penalty_key = random.split(rng_key)

    def penalty(params: Any) -> jax.Array:
        def critic(values: SiteValues) -> jax.Array:
            return judge(params, values)

        value = regularizer.between(penalty_key, critic, data, model, weights)
        return jnp.asarray(every * value, float)

    if every == 1:
        return penalty(params)
    # By chance and not by a counter: there is no state to keep between steps.
    turn = random.bernoulli(turn_key, 1 / every)
    return lax.cond(turn, penalty, lambda _: jnp.zeros(()), params)
