# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Record which modules the steps of an SVI call, to find those that cannot be reached from its
objects.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

Called = WeakSet[nn.Module]
# By SVI or loss.
_called: WeakKeyDictionary[Any, Called] = WeakKeyDictionary()


def note(owner: Any, modules: Called) -> None:
    """
    Record that a step called these modules.

    :param owner: the SVI or its loss.
    :param modules: what it called.
    """
    with suppress(TypeError):  # what takes no weak reference cannot be known later
        _called.setdefault(owner, WeakSet()).update(modules)


def called_by(*owners: Any) -> list[nn.Module]:
    """The modules that their steps called, as far as they were recorded and still exist."""
    found = {id(module): module for owner in owners for module in _kept(owner)}
    return list(found.values())


def _kept(owner: Any) -> Iterable[nn.Module]:
    try:
        return list(_called.get(owner, ()))
    except TypeError:
        return ()


def forget_garbage() -> None:
    """Forget modules that a step made for itself and that only the collector still knows."""
    gc.collect()


class Look:
    """Record the modules that this thread calls inside the context."""

    def __init__(self) -> None:
        self.called: Called = WeakSet()

    def __enter__(self) -> Look:
        thread = threading.get_ident()

        def look(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == thread:
                self.called.add(module)

        tracing = torch.jit.is_tracing()
        self._handle = None if tracing else register_module_forward_pre_hook(look)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._handle is not None:
            self._handle.remove()


class _Watched:
    """``loss_and_grads`` of an SVI, of whose calls the modules are noted."""

    def __init__(self, svi: Any, function: Any) -> None:
        self._function, self._called = function, _called.setdefault(svi, WeakSet())
        self.__self__ = getattr(function, "__self__", function)
        self.__name__ = getattr(function, "__name__", "loss_and_grads")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with Look() as look:
            loss = self._function(*args, **kwargs)
        self._called.update(look.called)
        return loss


def watch(svi: Any) -> None:
    """
    Record the modules that the steps of an SVI call from now on.

    :param svi: the SVI, whose loss may be one of Pyro that notes nothing.
    """
    if not isinstance(svi.loss_and_grads, _Watched):
        svi.loss_and_grads = _Watched(svi, svi.loss_and_grads)
