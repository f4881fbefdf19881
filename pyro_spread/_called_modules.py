# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Record which modules the steps of an SVI call, to find those that its objects do not lead to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

Called = WeakSet[nn.Module]
# By SVI or loss.
_called: WeakKeyDictionary[Any, Called] = WeakKeyDictionary()


@contextmanager
def each_call(look: Callable[[nn.Module], None]) -> Iterator[None]:
    """
    Show every module that this thread calls inside the context, before it runs.

    :param look: is called with the module.
    """
    thread = threading.get_ident()

    def hook(module: nn.Module, _: Any) -> None:
        # The hook is the process's, and other threads train nets of their own.
        if threading.get_ident() == thread:
            look(module)

    handle = None if torch.jit.is_tracing() else register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def note(owner: Any, modules: Iterable[nn.Module]) -> None:
    """
    Record that a step called these modules.

    :param owner: the SVI or its loss.
    :param modules: what it called.
    """
    with suppress(TypeError):  # what takes no weak reference cannot be known later
        _called.setdefault(owner, Called()).update(modules)


def called_by(*owners: Any) -> list[nn.Module]:
    """The modules that their steps called, as far as they were recorded and still exist."""
    found: dict[nn.Module, None] = {}
    for owner in owners:
        with suppress(TypeError):
            found.update(dict.fromkeys(_called.get(owner, ())))
    return list(found)


class _Watched:
    """``loss_and_grads`` of an SVI, of whose calls the modules are noted."""

    def __init__(self, svi: Any, function: Any) -> None:
        self._function, self._called = function, _called.setdefault(svi, Called())
        self.__self__ = getattr(function, "__self__", function)
        self.__name__ = getattr(function, "__name__", "loss_and_grads")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        called = Called()
        with each_call(called.add):
            loss = self._function(*args, **kwargs)
        self._called.update(called)
        return loss


def watch(svi: Any) -> None:
    """
    Record the modules that the steps of an SVI call from now on.

    :param svi: the SVI, whose loss may be one of Pyro that notes nothing.
    """
    if not isinstance(svi.loss_and_grads, _Watched):
        svi.loss_and_grads = _Watched(svi, svi.loss_and_grads)
