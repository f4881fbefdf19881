# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One optimiser for SVI out of two, one for each player."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim

from spread_analysis import _messages

_STEPS = "discriminator_steps_done"


class TwoPlayer(PyroOptim):
    """Two Pyro optimisers, each for the params of one player; see :func:`two_player`."""

    def __init__(
        self, generator: PyroOptim, discriminator: PyroOptim, discriminator_steps: int, name: str
    ) -> None:
        for role, optim in (("generator", generator), ("discriminator", discriminator)):
            if not isinstance(optim, PyroOptim) or isinstance(optim, TwoPlayer):
                raise TypeError(_messages.bad_player(role, optim, "a Pyro optimiser"))
        if generator is discriminator:
            wanted = "another object than the generator's, since each keeps state of its own"
            raise ValueError(_messages.bad_player("discriminator", discriminator, wanted))
        if discriminator_steps < 1 or discriminator_steps != int(discriminator_steps):
            raise ValueError(
                _messages.bad_range(
                    "two_player: discriminator_steps", discriminator_steps, "a positive integer"
                )
            )
        self.generator = generator
        self.discriminator = discriminator
        self.discriminator_steps = int(discriminator_steps)
        self.name = name
        self._steps_done = 0

    def __call__(self, params: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        """
        One step of the discriminator, and at every k-th call one of the generator.

        :param params: unconstrained params of both players.
        :raises ValueError: if none of them is the discriminator's.
        """
        store = pyro.get_param_store()
        params = list(params)
        names = [store.param_name(param) for param in params]
        mine = [str(name).split("$$$")[0] == self.name for name in names]
        if not any(mine):
            raise ValueError(_messages.unknown_player(self.name, map(str, names)))
        self._steps_done += 1
        critic = [param for param, is_critic in zip(params, mine, strict=True) if is_critic]
        self.discriminator(critic, *args, **kwargs)
        if self._steps_done % self.discriminator_steps == 0:
            rest = [param for param, is_critic in zip(params, mine, strict=True) if not is_critic]
            self.generator(rest, *args, **kwargs)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """
        Advance the learning rate schedules of those players that have one, both by one.

        A schedule of the generator thus counts the steps of the discriminator too; in NumPyro it
        counts its own.
        """
        for optim in (self.generator, self.discriminator):
            if hasattr(optim, "step"):
                optim.step(*args, **kwargs)

    def get_state(self) -> dict[str, Any]:
        """State of both optimisers and the count of steps, as a dict."""
        return {
            "generator": self.generator.get_state(),
            "discriminator": self.discriminator.get_state(),
            _STEPS: self._steps_done,
        }

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """
        Go on from what :meth:`get_state` returned.

        :param state_dict: the state.
        """
        self.generator.set_state(state_dict["generator"])
        self.discriminator.set_state(state_dict["discriminator"])
        self._steps_done = state_dict[_STEPS]


def two_player(
    generator: PyroOptim,
    discriminator: PyroOptim,
    discriminator_steps: int = 1,
    *,
    name: str = "discriminator",
) -> TwoPlayer:
    """
    One optimiser for SVI out of two: the discriminator's params go to one, all others to the other.

    Each keeps its own learning rate, state, schedule and gradient clipping (``clip_args``).

        >>> import pyro
        >>> slow = pyro.optim.Adam({"lr": 1e-4, "betas": (0.5, 0.999)})
        >>> fast = pyro.optim.Adam({"lr": 4e-4}, {"clip_norm": 10.0})
        >>> optim = two_player(slow, fast, discriminator_steps=2)

    :param generator: a Pyro optimiser (any torch one through ``pyro.optim``) for all params but the
        discriminator's.
    :param discriminator: a Pyro optimiser for the discriminator's params.
    :param discriminator_steps: steps of the discriminator for each of the generator, which moves
        at every k-th call, with the gradient of that call.
    :param name: of the discriminator, as in the loss.
    :raises TypeError: if a player is not a Pyro optimiser.
    :raises ValueError: if both are one object, or the number of steps is not a positive integer.
    """
    return TwoPlayer(generator, discriminator, discriminator_steps, name)
