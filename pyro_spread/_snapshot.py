# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""StepSnapshot: a copy of what a step may change, to undo the step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from pyro.optim import PyroOptim
from torch import nn

from pyro_spread import _parents
from pyro_spread._called_modules import Called, each_call
from spread_core.stateful import Stateful

# Optimisers of these keep all they know in ``state`` and ``param_groups``, or are schedules.
_PLAIN = ("torch.optim.", "pyro.optim.")
# Attributes of Pyro's optimisers that do not change, and one that is treated separately.
_FIXED = ("optim_objs", "pt_optim_args", "pt_clip_args", "kwargs")
_MOST_LEVELS = 8


class NotSettledError(BaseException):
    """A run without side effects met something that has not been set up by its first call yet."""


class StepSnapshot:
    """
    Params, optimisers, gradients, param store, buffers, counters and random state as they were.

    Each part is copied by its own method, before it changes; :meth:`restore` puts back all that was
    copied. Inside ``with snapshot:`` buffers are copied of every module that this thread calls,
    before it runs: models are functions, so that one does not know beforehand which they call.

    :param aside: whether modules work on copies of their buffers, and :meth:`restore` puts the
        buffers themselves back. Then not even autograd sees a change of those, of which it keeps
        some for its backward pass.
    :param settled: whether a module that its first call sets up is an error.
    """

    def __init__(self, aside: bool = False, settled: bool = False) -> None:
        self._aside, self._settled = aside, settled
        #: Modules that were called inside the context.
        self.called = Called()
        self._undo: list[Callable[[], None]] = []
        self._losses: list[Any] = []
        self._params: list[torch.Tensor] = []
        self._tensors: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._tables: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._seen: dict[int, Any] = {}  # the objects too, so that no id is used twice
        self._buffers: list[tuple[nn.Module, str, torch.Tensor | None, torch.Tensor | None]] = []
        self._lazy: list[nn.Module] = []
        self._store: dict[str, dict[Any, Any]] = {}
        self._with_grad: set[int] = set()

    # --- the param store, gradients, counters, random state

    def keep_store(self) -> None:
        """Keep the tables of the param store; one param may stand there under several names."""
        self._store = {name: dict(table) for name, table in _parents.store_tables().items()}
        params = self._store["_params"].values()
        self._with_grad = {id(param) for param in params if param.grad is not None}

    def clear_grads(self, params: Iterable[torch.Tensor]) -> None:
        """
        Clear gradients: None where there was none, elsewhere zeros as Pyro leaves them.

        :param params: those of the step.
        """
        for param in params:
            if param.grad is not None:
                had_one = id(param) in self._with_grad
                param.grad = torch.zeros_like(param.grad) if had_one else None

    def keep_grads(self, params: Iterable[torch.Tensor]) -> None:
        """Keep gradients, where :meth:`clear_grads` would lose them."""
        held = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in params]

        def put_back() -> None:
            for param, grad, value in held:
                if grad is not None and value is not None:
                    grad.copy_(value)  # a step adds to it
                param.grad = grad

        self._undo.append(put_back)

    def keep_counters(self, loss: Any) -> None:
        """Keep the counters of a loss, if it has any."""
        if isinstance(loss, Stateful) and not any(one is loss for one in self._losses):
            state = loss.get_state()
            self._losses.append(loss)
            self._undo.append(lambda: loss.set_state(state))

    def keep_random_state(self) -> None:
        """Keep the random state."""
        state = random_state()
        self._undo.append(lambda: set_random_state(state))

    def undo_by(self, function: Callable[[Any], Any], state: Any) -> None:
        """Have :meth:`restore` call the user's code, whose errors do not stop the rest of it."""

        def undo() -> None:
            with suppress(Exception):
                function(state)

        self._undo.append(undo)

    # --- buffers

    def __enter__(self) -> StepSnapshot:
        self._calls = each_call(self._look)
        self._calls.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._calls.__exit__(*error)

    def _look(self, module: nn.Module) -> None:
        if self._settled and not is_settled(module):
            raise NotSettledError
        self.called.add(module)
        self.keep_buffers(module)

    def keep_buffers(self, module: nn.Module) -> None:
        """Keep the buffers of one module, without its parts, unless that has been done before."""
        if not module._buffers or id(module) in self._seen:
            return
        self._seen[id(module)] = module
        for name, buffer in module._buffers.items():
            if buffer is None:
                self._buffers.append((module, name, None, None))
            elif nn.parameter.is_lazy(buffer):
                self._lazy.append(module)
            else:
                # Another snapshot may have put the buffer aside: this one is to outlast it.
                own: torch.Tensor = getattr(buffer, "_set_aside", buffer)
                value: Any = own.detach().clone()
                self._buffers.append((module, name, buffer if self._aside else own, value))
                if self._aside:
                    value._set_aside = own
                    module._buffers[name] = value

    def _restore_buffers(self) -> None:
        for module, name, buffer, value in self._buffers:
            module._buffers[name] = buffer
            if buffer is not None and value is not None and not self._aside:
                buffer.copy_(value)
        for module in self._lazy:  # their shape is known by now, and may stay so
            held = [buffer for buffer in module._buffers.values() if buffer is not None]
            if not any(map(nn.parameter.is_lazy, held)):
                getattr(module, "reset_running_stats", lambda: None)()

    # --- params and optimisers

    def keep_optimiser(self, optim: PyroOptim, params: Sequence[torch.Tensor]) -> None:
        """
        Keep params, and all that an optimiser of any class holds.

        :param optim: the optimiser.
        :param params: those that it is about to move.
        """
        self._params, self._tensors = list(params), list(params)
        self._seen.update((id(param), param) for param in params)
        for one in _players(optim):
            own = vars(one)
            objects = own.get("optim_objs", {})
            self._tables += [(own, dict(own)), (objects, dict(objects))]
            for param in params:
                if param in objects:
                    self._keep_one(objects[param])
            for name, value in own.items():
                if name not in _FIXED and isinstance(value, torch.Tensor | dict | list):
                    self._keep(value)
        self._values = _copies(optim, self._tensors)

    def _keep_one(self, optimiser: Any) -> None:
        """An optimiser of torch, or a schedule."""
        if not type(optimiser).__module__.startswith(_PLAIN):
            self._keep(optimiser)
            return
        own = vars(optimiser)
        self._tables.append((own, dict(own)))
        if "optimizer" in own:  # it is a schedule
            self._keep_one(own["optimizer"])
            return
        state, groups = own["state"], own["param_groups"]
        self._tables.append((state, dict(state)))
        self._lists.append((groups, list(groups)))
        self._tables += [(group, dict(group)) for group in groups]
        for each in state.values():
            self._tables.append((each, dict(each)))
            for value in each.values():
                if isinstance(value, torch.Tensor):
                    self._tensors.append(value)
                elif isinstance(value, list | dict):
                    self._keep(value)

    def _keep(self, value: Any, level: int = 0) -> None:
        """Through containers and objects of any class: slow, and in no stock optimiser."""
        if id(value) in self._seen or level > _MOST_LEVELS:
            return
        if isinstance(value, torch.Tensor):
            self._tensors.append(value)
        elif isinstance(value, dict):
            self._tables.append((value, dict(value)))
            for each in list(value.values()):
                self._keep(each, level + 1)
        elif isinstance(value, list | tuple):
            if isinstance(value, list):
                self._lists.append((value, list(value)))
            for each in value:
                self._keep(each, level + 1)
        elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module | FunctionType):
            self._keep(vars(value), level + 1)
        else:
            return
        self._seen[id(value)] = value

    def shorten(self, scale: float) -> None:
        """Undo a part of the change of the params."""
        with torch.no_grad():
            for param, value in zip(self._params, self._values, strict=False):
                param.copy_(torch.lerp(value, param, scale))

    def restore(self) -> None:
        """Put everything back that was kept."""
        for now, before in self._tables:
            now.clear()
            now.update(before)
        for each, members in self._lists:
            each[:] = members
        with torch.no_grad():
            for tensor, value in zip(self._tensors, self._values, strict=True):
                tensor.copy_(value)
            self._restore_buffers()
            for name, table in _parents.store_tables().items() if self._store else ():
                table.clear()
                table.update(self._store[name])
            for undo in self._undo:
                undo()


# Memory for the copies of one step after the other: to ask for it anew takes longer than to copy.
_memory: WeakKeyDictionary[PyroOptim, dict[int, torch.Tensor]] = WeakKeyDictionary()


@torch.no_grad()
def _copies(optim: PyroOptim, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    memory = _memory.setdefault(optim, {})
    if len(memory) > 2 * len(tensors):
        memory.clear()
    copies = []
    for tensor in tensors:
        copy = memory.get(id(tensor))
        if (
            copy is None
            or copy.shape != tensor.shape
            or copy.dtype != tensor.dtype
            or copy.device != tensor.device
        ):
            copy = memory[id(tensor)] = torch.empty_like(tensor, requires_grad=False)
        copies.append(copy)
    if tensors:
        _parents.copy_all(copies, tensors)
    return copies


def _players(optim: PyroOptim) -> Iterator[PyroOptim]:
    yield optim
    for part in getattr(optim, "parts", dict)().values():
        yield from _players(part)


def is_settled(program: Any) -> bool:
    """Whether lazy params have a shape, and an autoguide knows its model."""
    own = getattr(program, "__dict__", {})
    if own.get("prototype_trace", program) is None:
        return False
    params = own["_parameters"].values() if isinstance(program, nn.Module) else ()
    return not any(param is not None and nn.parameter.is_lazy(param) for param in params)


def random_state() -> dict[str, Any]:
    """The random state of torch (CUDA too), NumPy and Python, of arrays and plain values."""
    version, internal, gauss = random.getstate()
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else None,
        "numpy": np.random.get_state(legacy=False),
        "python": {"version": version, "state": np.array(internal, np.int64), "gauss": gauss},
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`random_state` returned."""
    python = state["python"]
    internal = tuple(int(word) for word in python["state"])
    random.setstate((python["version"], internal, python["gauss"]))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    # Devices that no longer exist need no random state.
    for device, each in enumerate(state["cuda"] or []):
        if torch.cuda.is_available() and device < torch.cuda.device_count():
            torch.cuda.set_rng_state(each, device)
