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
from spread_core.math.regularizers import (
    GradientPenaltyShared,
    R1Shared,
    R2Shared,
    RegularizerShared,
    SumOfPenaltiesShared,
)
from spread_core.messages import critics, players

Critic = Callable[[SiteValues], jax.Array]
#: Weights of the data samples and of the model's draws, each of the batch shape or None.
Weights = tuple[jax.Array | None, jax.Array | None]


def constant(values: SiteValues) -> SiteValues:
    """Values through which no gradient passes."""
    return values.replaced(lax.stop_gradient(dict(values)))


def _squared_norms(critic: Critic, values: SiteValues) -> jax.Array:
    """Squared norm of the gradient of every logit at its own input, of the batch shape."""
    grads = jax.grad(lambda inputs: critic(values.replaced(inputs)).sum())(dict(values))
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

    def between(
        self,
        rng_key: jax.Array,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: Weights,
    ) -> jax.Array:
        """
        The penalty as the losses take it; :meth:`penalty` unless a class has more to say.

        Those of this library are differentiable in the values too, for a critic that is unrolled.

        :param rng_key: random key.
        :param critic: from values to logits.
        :param data: values of the data, after the noise.
        :param model: values of the model's draws, after the noise.
        :param weights: of both sides.
        """
        return self.penalty(rng_key, critic, data, model, weights[0])

    def __add__(self, other: Regularizer) -> SumOfPenalties:
        """Both penalties at once."""
        if not isinstance(other, Regularizer):
            raise TypeError(critics.no_penalty(other))
        return SumOfPenalties((self, other), every=self.every)


class _OfSlopes(Regularizer):
    """Base class of penalties on the critic's gradient at some values."""

    def penalty(
        self,
        rng_key: jax.Array,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: jax.Array | None = None,
    ) -> jax.Array:
        """The penalty, a scalar, of values that are constants."""
        return self.between(rng_key, critic, constant(data), constant(model), (weights, weights))


@dataclass(frozen=True)
class SumOfPenalties(SumOfPenaltiesShared, _OfSlopes):
    """Several penalties at once, as in ``R1(1.0) + R2(1.0)``."""

    parts: tuple[Regularizer, ...] = ()

    def between(
        self,
        rng_key: jax.Array,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: Weights,
    ) -> jax.Array:
        """The sum, a scalar."""
        keys = random.split(rng_key, len(self.parts))
        each = zip(keys, self.parts, strict=True)
        penalties = [part.between(key, critic, data, model, weights) for key, part in each]
        return jnp.asarray(sum(penalties))


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
class R1(R1Shared, _OfSlopes):
    r"""
    :math:`\gamma/2 \; E_P |\nabla_x \mathrm{logit}(x)|^2` at the (noisy) data.

        >>> R1(every=4, gamma=1.0)
        R1(every=4, gamma=1.0)
    """

    def between(
        self,
        rng_key: jax.Array,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: Weights,
    ) -> jax.Array:
        """The penalty at the data, a scalar."""
        return self._of_slopes(_squared_norms(critic, data), weights[0])


@dataclass(frozen=True)
class R2(R2Shared, _OfSlopes):
    r"""
    :math:`\gamma/2 \; E_Q |\nabla_y \mathrm{logit}(y)|^2` at the (noisy) draws of the model.

        >>> R1(gamma=1.0) + R2(gamma=1.0)
        SumOfPenalties(every=1, parts=(R1(every=1, gamma=1.0), R2(every=1, gamma=1.0)))
    """

    def between(
        self,
        rng_key: jax.Array,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: Weights,
    ) -> jax.Array:
        """The penalty at the draws, a scalar."""
        return self._of_slopes(_squared_norms(critic, model), weights[1])


@dataclass(frozen=True)
class GradientPenalty(GradientPenaltyShared, _OfSlopes):
    r"""
    :math:`\lambda\, E (|\nabla_x c(x)| - t)^2` at random points between data and model draws.

        >>> GradientPenalty(10.0)
        GradientPenalty(every=1, weight=10.0, target=1.0)
    """

    def between(
        self,
        rng_key: jax.Array,
        critic: Critic,
        data: SiteValues,
        model: SiteValues,
        weights: Weights,
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
        return self._of_slopes(_squared_norms(critic, data.replaced(between)), weights[0])
