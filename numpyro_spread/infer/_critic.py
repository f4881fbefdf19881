# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What every critic is trained with, beside its logistic loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_spread.ratio.adapters import SiteValues
from numpyro_spread.ratio.regularizers import Regularizer


def penalty_in_turn(
    rng_key: jax.Array,
    regularizer: Regularizer | None,
    judge: Callable[[Any, SiteValues], jax.Array],
    params: Any,
    data: SiteValues,
    model: SiteValues,
    weights: jax.Array | None,
) -> jax.Array:
    """
    The penalty on the critic whenever it has its turn, else zero; differentiable in ``params``.

    :param rng_key: random key.
    :param regularizer: the penalty, or None.
    :param judge: from params and values to logits.
    :param params: the critic's.
    :param data: values of the side with label one, as constants.
    :param model: values of the other side, as constants.
    :param weights: of the data samples.
    """
    if regularizer is None:
        return jnp.zeros(())
    every = regularizer.every
    turn_key, penalty_key = random.split(rng_key)

    def penalty(params: Any) -> jax.Array:
        def critic(values: SiteValues) -> jax.Array:
            return judge(params, values)

        value = regularizer.penalty(penalty_key, critic, data, model, weights)
        return jnp.asarray(every * value, float)

    if every == 1:
        return penalty(params)
    # By chance and not by a counter: there is no state to keep between steps.
    turn = random.bernoulli(turn_key, 1 / every)
    return lax.cond(turn, penalty, lambda _: jnp.zeros(()), params)
