# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Counters that a step changes on the host, outside params, for checkpoints."""

from __future__ import annotations

from typing import Any, ClassVar


class Stateful:
    """Names the attributes that the next step reads: plain values, or objects of this class."""

    _remembers: ClassVar[tuple[str, ...]] = ()

    def _remembered(self) -> tuple[str, ...]:
        """The names of the attributes of this very object."""
        return self._remembers

    def _recall(self, name: str) -> Any:
        """The value, or the object, that goes by a name."""
        return getattr(self, name)

    def get_state(self) -> dict[str, Any]:
        """The state for :meth:`set_state`, made of numbers, strings, lists and dicts."""
        state = {name: self._recall(name) for name in self._remembered()}
        return {
            name: value.get_state() if isinstance(value, Stateful) else value
            for name, value in state.items()
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """
        Restore what :meth:`get_state` returned.

        :param state: the state.
        :raises ValueError: if it is that of another class; nothing is changed.
        """
        check_state(self, state)
        for name, value in state.items():
            mine = self._recall(name)
            if isinstance(mine, Stateful):
                mine.set_state(value)
            else:
                setattr(self, name, value)


def check_state(owner: Stateful, state: Any) -> None:
    """
    Refuse a state that :meth:`Stateful.get_state` of this object does not return.

    :raises ValueError: naming the class.
    """
    name, remembered = type(owner).__name__, owner._remembered()
    if not isinstance(state, dict) or state.keys() != set(remembered):
        raise ValueError(f"{name} has another state: {sorted(remembered)}")
    for attribute, value in state.items():
        mine = owner._recall(attribute)
        if isinstance(mine, Stateful):
            check_state(mine, value)
        elif type(value) is not type(mine):
            raise ValueError(f"{name}: {attribute} is a {type(mine).__name__}")
