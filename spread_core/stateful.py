# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Counters that a step changes on the host, outside params, for checkpoints."""

from __future__ import annotations

from typing import Any, ClassVar


class Stateful:
    """Names the attributes that the next step reads: plain values, or objects of this class."""

    _remembers: ClassVar[tuple[str, ...]] = ()

    def get_state(self) -> dict[str, Any]:
        """The state for :meth:`set_state`, made of numbers, strings, lists and dicts."""
        state = {name: getattr(self, name) for name in self._remembers}
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
        self._check_state(state)
        for name, value in state.items():
            mine = getattr(self, name)
            if isinstance(mine, Stateful):
                mine.set_state(value)
            else:
                setattr(self, name, value)

    def _check_state(self, state: Any) -> None:
        if not isinstance(state, dict) or state.keys() != set(self._remembers):
            raise ValueError(f"{type(self).__name__} has another state: {sorted(self._remembers)}")
        for name, value in state.items():
            mine = getattr(self, name)
            if isinstance(mine, Stateful):
                mine._check_state(value)
            elif type(value) is not type(mine):
                raise ValueError(f"{type(self).__name__}: {name} is a {type(mine).__name__}")
