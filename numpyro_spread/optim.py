# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One optimiser for SVI out of two, one for each player."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from spread_analysis import _messages


def two_player(
    generator: optax.GradientTransformation,
    discriminator: optax.GradientTransformation,
    discriminator_steps: int = 1,
    *,
    name: str = "discriminator",
) -> optax.GradientTransformation:
    """
    One optimiser for SVI out of two: the discriminator's params go to one, all others to the other.

    Each keeps its own learning rate, state, schedule and gradient clipping (``optax.chain``).

        >>> import optax
        >>> slow = optax.adam(1e-4, b1=0.5)
        >>> fast = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(4e-4))
        >>> optim = two_player(slow, fast, discriminator_steps=2)

    :param generator: an optax optimiser for all params but the discriminator's.
    :param discriminator: an optax optimiser for the discriminator's params.
    :param discriminator_steps: steps of the discriminator for each of the generator, which moves
        at every k-th step, with the gradient of that step; its schedules count its own steps.
    :param name: of the discriminator, as in the loss.
    :return: an optax optimiser for SVI.
    :raises TypeError: if a player is not an optax optimiser.
    :raises ValueError: if the number of steps is not a positive integer; at ``init``, if none of
        the params is the discriminator's.
    """
    for role, optim in (("generator", generator), ("discriminator", discriminator)):
        if not isinstance(optim, optax.GradientTransformation):
            raise TypeError(_messages.bad_player(role, optim, "an optax.GradientTransformation"))
    if discriminator_steps < 1 or discriminator_steps != int(discriminator_steps):
        raise ValueError(
            _messages.bad_range(
                "two_player: discriminator_steps", discriminator_steps, "a positive integer"
            )
        )
    k = int(discriminator_steps)
    if k > 1:
        generator = optax.conditionally_mask(
            generator, should_transform_fn=lambda step, **_: jnp.equal(step % k, k - 1)
        )

    def players(params: dict[str, Any]) -> dict[str, str]:
        mine = {site: site.split("$")[0] == name for site in params}
        if not any(mine.values()):
            raise ValueError(_messages.unknown_player(name, params))
        return {site: "discriminator" if is_mine else "generator" for site, is_mine in mine.items()}

    return optax.partition({"generator": generator, "discriminator": discriminator}, players)
