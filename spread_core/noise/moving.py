# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise whose scale changes from step to step of a training run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from array_api_compat import array_namespace

from spread_core.messages import general
from spread_core.messages import moving as messages
from spread_core.noise.base import Kernel
from spread_core.stateful import Stateful


class Moving(Kernel[Any, Any, Any]):
    """
    A kernel for the noise of a loss, which multiplies its scale by a factor at every step.

    A loss keeps a copy of its own and takes the kernel of the present step from it.
    """

    #: The kernel, at the multiplier 1.
    inner: Any

    #: The site in the loss that keeps it.
    _site: ClassVar[str | None] = None
    #: What users call to make it.
    _name: ClassVar[str]
    #: What the first step finds: a number.
    _initial: ClassVar[Any]

    def _factor(self, state: Any) -> Any:
        """The multiplier of the scale."""
        raise NotImplementedError

    def _advanced(self, state: Any, accuracy: Any) -> Any:
        """
        The state after a step.

        :param state: that before it.
        :param accuracy: how often the critic was right, if there is one.
        """
        raise NotImplementedError

    def _factor_now(self) -> Any:
        """The multiplier at the step that is being computed."""
        raise NotImplementedError

    def _now(self) -> Any:
        if self._site is None:
            raise TypeError(messages.no_step(self._name, self._needs_critic))
        factor = self._factor_now()
        return self.inner._scaled(factor)._changed(_moved_by=factor)

    def _refused(self, state: Any, factor: Any) -> ValueError:
        text = messages.bad_factor(self._name, state, factor)
        return ValueError(text if self._site is None else general.at_site(self._site, text))

    def _owned(self, site: str) -> Any:
        owned = copy.copy(self)
        object.__setattr__(owned, "_site", site)
        return owned

    @property
    def coupled_dims(self) -> int:  # type: ignore[override]
        """Event dims of x that the kernel needs."""
        return int(self.inner.coupled_dims)

    def check_value(self, x: Any) -> None:
        """
        Refuse values of a type that the kernel cannot take.

        :raises TypeError: if x is not of a floating type.
        """
        self.inner.check_value(x)

    def _moves_with_data(self) -> bool:
        return bool(self.inner._moves_with_data())

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(messages.no_step(self._name, self._needs_critic))

    __call__ = spread = draw = characteristic_function = _conditional = _spread = _refuse


class Annealed(Moving):
    """
    Noise whose scale follows a schedule.

    :param inner: the kernel.
    :param schedule: from the number of steps done to the multiplier of its scale.
    """

    schedule: Callable[[Any], Any]

    _name, _initial = "annealed", 0

    def _factor(self, state: Any) -> Any:
        return self.schedule(state)

    def _advanced(self, state: Any, accuracy: Any) -> Any:
        return state + 1


class Adaptive(Moving):
    """
    Noise whose scale keeps the critic's accuracy at a set point.

    Its state is the logarithm of the multiplier.
    """

    accuracy: float
    speed: float
    limits: tuple[float, float]

    _name, _initial, _needs_critic = "adaptive", 0.0, True

    def __post_init__(self) -> None:
        low, high = map(float, self.limits)
        if not 0.5 < self.accuracy < 1:
            raise ValueError(messages.bad_accuracy(self.accuracy))
        if not 0 < self.speed < math.inf:
            raise ValueError(messages.bad_speed(self.speed))
        if not 0 < low <= 1 <= high < math.inf:
            raise ValueError(messages.bad_limits(self.limits))

    def _factor(self, state: Any) -> Any:
        xp = array_namespace(state) if hasattr(state, "shape") else math
        return xp.exp(state)

    def _advanced(self, state: Any, accuracy: Any) -> Any:
        # From -1, where a coin would be as good, to 1, where the critic is perfect.
        above = (accuracy - self.accuracy) / (1 - self.accuracy)
        below = (accuracy - self.accuracy) / (self.accuracy - 0.5)
        low, high = map(math.log, self.limits)
        if hasattr(state, "shape"):
            xp = array_namespace(state)
            moved = state + self.speed * xp.clip(xp.where(above > 0, above, below), -1.0, 1.0)
            return xp.clip(moved, low, high)
        moved = state + self.speed * max(-1.0, min(1.0, above if above > 0 else below))
        return max(low, min(high, moved))


def annealed_by(make: Callable[[Any, Any], Any], noise: Any, schedule: Any) -> Any:
    """
    Kernels whose scales follow a schedule.

    :param make: the backend's :class:`Annealed`.
    :param noise: a kernel, or a dict from site to kernel.
    :param schedule: the schedule.
    :raises TypeError: if noise is neither or has no scale, or the schedule cannot be called.
    """
    if not callable(schedule):
        raise TypeError(messages.bad_schedule(schedule))
    return moved_by("annealed", lambda kernel: make(kernel, schedule), noise)


def adaptive_by(
    make: Callable[..., Any], noise: Any, accuracy: float, speed: float, limits: tuple[float, float]
) -> Any:
    """
    Kernels whose scales keep the critic's accuracy at a set point.

    :param make: the backend's :class:`Adaptive`.
    :param noise: a kernel, or a dict from site to kernel.
    :param accuracy: the set point.
    :param speed: the largest change of the logarithm of the scale in a step.
    :param limits: the least and the largest multiplier of the scale.
    :raises TypeError: if noise is neither or has no scale.
    :raises ValueError: if another argument is out of its range.
    """
    return moved_by("adaptive", lambda kernel: make(kernel, accuracy, speed, limits), noise)


def moved_by(name: str, make: Callable[[Any], Moving], noise: Any) -> Any:
    """
    One kernel, or a dict of them, made to move.

    :param name: of the function that users call.
    :param make: from a kernel to the one that moves.
    :param noise: a kernel, or a dict from site to kernel.
    :raises TypeError: if noise is neither, or has no scale.
    """
    if isinstance(noise, Mapping):
        return {site: moved_by(name, make, kernel) for site, kernel in noise.items()}
    if not isinstance(noise, Kernel) or isinstance(noise, Moving):
        raise TypeError(messages.nothing_to_move(name, noise))
    noise._scaled(1.0)  # refuses what has no scale
    return make(noise)


def moving_kernels(noise: Any) -> dict[str, Any]:
    """
    The kernels of a loss that move, by site.

    :param noise: what ``as_noise`` returned.
    """
    if not isinstance(noise, Mapping):
        return {}
    return {site: kernel for site, kernel in noise.items() if isinstance(kernel, Moving)}


def check_scale_is_fixed(noise: Any) -> None:
    """
    Refuse noise that moves, in the loss of ``amortize``.

    :param noise: what ``as_noise`` returned.
    :raises ValueError: naming the site.
    """
    for site, kernel in moving_kernels(noise).items():
        raise ValueError(general.at_site(site, messages.amortized(kernel._name)))


class Moves(Stateful):
    """
    The states of the kernels that move in a loss, where they are kept on the host.

    :param kernels: dict from site to kernel, each with a ``_cell``.
    """

    def __init__(self, kernels: Mapping[str, Any]) -> None:
        self._kernels = kernels

    def _remembered(self) -> tuple[str, ...]:
        return tuple(self._kernels)

    def _recall(self, name: str) -> Any:
        return self._kernels[name]._cell[0]

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_state`` returned."""
        for site, kernel in self._kernels.items():
            kernel._cell[0] = state[site]

    def advance(self, accuracy: Any = None) -> None:
        """
        Count a step.

        :param accuracy: how often the critic was right, if there is one.
        """
        for kernel in self._kernels.values():
            if kernel._needs_critic is (accuracy is None):
                continue
            kernel._cell[0] = kernel._advanced(kernel._cell[0], accuracy)
