# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""How a model uses its data, as far as this decides how noise is drawn; plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spread_core.arguments import Key
from spread_core.remembered import Remembered


class Learned(Exception):  # noqa: N818, no error but news
    """A run has shown something that noise should have known when it was drawn."""


@dataclass
class UseOfData:
    """
    How a model uses its data, as found in runs with arguments of the same shapes.

    ``layouts`` has the shapes in which noise has to be drawn, since sites observe their data
    reshaped and a kernel treats elements differently; ``events`` the event dims of sites whose
    kernel draws something for a whole event; ``rows`` the dims along which plates
    subsample, and ``plates`` their sizes and how many elements they take. ``complete`` tells that a
    run has shown nothing new.
    """

    layouts: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    events: dict[Key, int] = field(default_factory=dict)
    rows: dict[Key, int] = field(default_factory=dict)
    plates: dict[str, tuple[int, int]] = field(default_factory=dict)
    complete: bool = False

    def see_plate(
        self, name: str, size: int, taken: int, shapes: dict[Key, tuple[int, ...]]
    ) -> None:
        """
        A plate of ``size`` takes part of the data in arguments of these shapes.

        :raises Learned: if that was not known.
        """
        if self.complete:  # a plate that sometimes takes all: noise everywhere is right, if slow
            return
        found = {k: s.index(size) for k, s in shapes.items() if k not in self.rows and size in s}
        if taken < size and found:
            self.rows.update(found)
            self.plates[name] = (size, taken)
            raise Learned

    def kernel_at(self, key: Key, kernel: Any) -> Any:
        """The kernel that draws noise for an argument, as far as its events are known."""
        return kernel._at_events(self.events[key]) if key in self.events else kernel

    def see_events(self, key: Key, event_dim: int) -> None:
        """
        The argument at ``key`` is observed in events of that many dims.

        :raises Learned: always; it was not known.
        """
        self.events[key] = event_dim
        raise Learned

    def see_layout(self, key: Key, layout: tuple[int, ...]) -> None:
        """
        Noise on the argument at ``key`` has to be drawn in this shape.

        :raises Learned: always; it was not known.
        """
        self.layouts[key] = layout
        raise Learned


_known: Remembered[dict[object, UseOfData]] = Remembered()


def use_of(model: object, about: object) -> UseOfData:
    """
    The record of a model, to be extended.

    :param model: the model.
    :param about: what the arguments are, hashable.
    """
    of_model = _known.get(model)  # type: ignore[arg-type]
    if of_model is None:
        of_model = {}
        _known.keep(model, of_model)  # type: ignore[arg-type]
    return of_model.setdefault(about, UseOfData())


def layout(
    argument: Sequence[int], value: Sequence[int], event: Sequence[int]
) -> tuple[int, ...] | None:
    """
    The shape that makes a site's events out of an argument, element after element; None if none.

    :param argument: shape of the argument.
    :param value: shape of the site's value.
    :param event: its event shape.
    """
    if math.prod(argument) == math.prod(value):
        return tuple(value)
    size = math.prod(event)
    for cut in range(len(argument), -1, -1):
        if math.prod(argument[cut:]) == size:
            return (*argument[:cut], *event)
    return None
