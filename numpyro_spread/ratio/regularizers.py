# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Penalties on the gradient of a critic, which stabilise adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_spread.ratio.adapters import SiteValues
from spread_core.math.regularizers import GradientPenaltyShared, R1Shared, RegularizerShared
from spread_core.messages import players

Critic = Callable[[SiteValues], jax.Array]


def _squared_norms(critic: Critic, values: SiteValues) -> jax.Array:
    """Squared norm of the gradient of every logit at its own input, of the batch shape."""
    inputs = lax.stop_gradient(dict(values))
    grads = jax.grad(lambda inputs: critic(values.replaced(inputs)).sum())(inputs)
    flat = [jnp.square(g).reshape(*values.batch_shape, -1).sum(-1) for g in grads.values()]
    return jnp.asarray(sum(flat))


@dataclass(frozen=True)
class Regularizer(RegularizerShared):
    """
    Base class of penalties on the critic's loss; subclasses implement :meth:`penalty`.

    Only the critic is trained by it.
    """

    def penalty(
        self,
        rng_key: jax.Array,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        """
        The penalty, a scalar that is differentiable in the critic's params.

        :param rng_key: random key.
        :param critic: from values to logits.
        :param data: values of the data, after the noise.
        :param model: values of the model's draws, after the noise.
        :param weights: of the data samples, of the batch shape.
        """
        raise NotImplementedError


def check_regularizer(regularizer: object) -> None:
    """
    Raise an error for anything that is not a penalty.

    :param regularizer: a :class:`Regularizer`, or None.
    :raises TypeError: saying what it must be.
    """
    if regularizer is not None and not isinstance(regularizer, Regularizer):
        wanted = "a Regularizer such as R1(), or None"
        raise TypeError(players.bad_range("regularizer", regularizer, wanted))


@dataclass(frozen=True)
class R1(R1Shared, Regularizer):
    r"""
    :math:`\gamma/2 \; E_P |\nabla_x \mathrm{logit}(x)|^2` at the (noisy) data.

        >>> R1(every=4, gamma=1.0)
        R1(every=4, gamma=1.0)
    """

    def penalty(
        self,
        rng_key: jax.Array,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        """The penalty at the data, a scalar."""
        return self._of_slopes(_squared_norms(critic, data), weights)


@dataclass(frozen=True)
class GradientPenalty(GradientPenaltyShared, Regularizer):
    r"""
    :math:`\lambda\, E (|\nabla_x c(x)| - t)^2` at random points between data and model draws.

        >>> GradientPenalty(10.0)
        GradientPenalty(every=1, weight=10.0, target=1.0)
    """

    def penalty(
        self,
        rng_key: jax.Array,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        """The penalty at points between data and draws, a scalar."""
        share = random.uniform(rng_key, data.batch_shape)
        between = {}
        for site, real in data.items():
            fake = model[site]
            if fake.shape != real.shape:
                raise ValueError(players.unequal_for_penalty(site, real.shape, fake.shape))
            mixing = share.reshape(*share.shape, *[1] * (real.ndim - share.ndim))
            mixing = mixing.astype(real.dtype)
            between[site] = mixing * real + (1 - mixing) * fake
        return self._of_slopes(_squared_norms(critic, data.replaced(between)), weights)
