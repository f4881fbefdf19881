# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Losses with a critic: what is the same in both backends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from spread_core.logits import Logits
from spread_core.math.ratio import weighted_mean
from spread_core.messages import critics, players
from spread_core.shared_docs import SharedDocs
from spread_core.validation import check_count

_UPDATES = ("one_pass", "two_pass")


class CriticLossShared(SharedDocs, ABC):
    """
    Base class of the losses in which a critic compares data with the model's draws.

    Subclasses say what each player minimises, as functions of the logits.

    :param discriminator: a module ``discriminator(values, *args, **kwargs) -> logits``.
    :param noise: dict from site to kernel, a callable that returns one, or None.
    :param regularizer: penalty on the critic, or None.
    :param update: ``"one_pass"`` or ``"two_pass"``; None chooses.
    :param num_particles: number of draws of the model per datum and step.
    :param name: of the discriminator among the params.
    :param unroll: how many steps of the critic the generator's gradient passes through.
    :param unroll_step_size: of each of these.
    """

    #: Whether it knows the gradient of learned noise, which moves data and draws, and whether its
    #: critic's accuracy says how far these are apart.
    _plays_noise: ClassVar[bool] = False

    def __init__(
        self,
        discriminator: Any,
        noise: Any,
        regularizer: Any,
        update: str | None,
        num_particles: int,
        name: str,
        unroll: int = 0,
        unroll_step_size: float = 0.1,
    ) -> None:
        check_count("num_particles", num_particles)
        options: dict[str, Any] = {"num_particles": num_particles}
        super().__init__(**options)
        self._bind(discriminator)
        if update is not None and update not in _UPDATES:
            raise ValueError(players.bad_choice("update", update, _UPDATES))
        check_count("unroll", unroll, least=0)
        if not 0 < unroll_step_size < math.inf:
            wanted = "a positive number"
            raise ValueError(players.bad_range("unroll_step_size", unroll_step_size, wanted))
        if unroll and update == "one_pass":
            raise ValueError(critics.unrolled_in_one_pass())
        self._check_regularizer(regularizer)
        self.discriminator = discriminator
        knows = self._plays_noise
        self.noise = self._as_noise(noise, is_played=knows, adapts=knows)
        self.regularizer = regularizer
        self.update = update
        self.name = name
        self.unroll = unroll
        self.unroll_step_size = unroll_step_size

    def _bind(self, discriminator: Any) -> None:
        """Refuse what cannot be a discriminator in this backend."""
        raise NotImplementedError

    @staticmethod
    def _check_regularizer(regularizer: Any) -> None:
        raise NotImplementedError

    @staticmethod
    def _as_noise(noise: Any, is_played: bool, adapts: bool) -> Any:
        """The backend's check of the argument ``noise``."""
        raise NotImplementedError

    @abstractmethod
    def _critic_loss(self, logits: Logits) -> Any:
        """The loss of the critic, a scalar."""

    def _generator_loss(self, logits: Any) -> Any:
        """The loss of the generator, for every sample of the model."""
        raise NotImplementedError

    def _generator_mean(self, logits: Logits) -> Any:
        """What the generator minimises, a scalar."""
        return weighted_mean(self._generator_loss(logits.q), logits.weights_q)

    @abstractmethod
    def _value(self, logits: Logits) -> Any:
        """The reported value."""
