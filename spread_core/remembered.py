# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Cache what has been found out about a model or guide, for as long as it lives."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_V = TypeVar("_V")


class Remembered(Generic[_V]):
    """
    Values by function. Methods of different objects are different keys, since the object may decide
    what they do.

    Functions that are not hashable or not weakly referenced are forgotten at once. Several threads
    may ask and tell at the same time.
    """

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Any, dict[Any, _V]] = weakref.WeakKeyDictionary()
        # Reentrant: a garbage collection in here may run code that asks again.
        self._lock = threading.RLock()

    def get(self, fn: Callable[..., Any]) -> _V | None:
        """The value stored for ``fn``, or None."""
        owner, method = _parts(fn)
        try:
            with self._lock:
                return self._known.get(owner, {}).get(method)
        except TypeError:
            return None

    def keep(self, fn: Callable[..., Any], value: _V) -> None:
        """Remember ``value`` of ``fn``."""
        owner, method = _parts(fn)
        try:
            with self._lock:
                self._known.setdefault(owner, {})[method] = value
        except TypeError:
            return

    def forget(self, fn: Callable[..., Any]) -> None:
        """Know nothing of ``fn`` any more."""
        owner, method = _parts(fn)
        try:
            with self._lock:
                self._known.get(owner, {}).pop(method, None)
        except TypeError:
            return


def _parts(fn: Any) -> tuple[Any, Any]:
    # A bound method is made anew at every look-up, so that no weak reference to it lasts.
    method = getattr(fn, "__func__", None)
    return (fn, None) if method is None else (fn.__self__, method)
