# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Transactions: undo what a failed step changed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from pyro.util import get_rng_state, set_rng_state
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_spread import _parents
from pyro_spread._called_modules import Called, note
from pyro_spread._optimiser_copy import OptimiserState
from spread_core.stateful import Stateful


class _Running(threading.local):
    """The transactions that this thread has not finished."""

    snapshot: StepSnapshot | None = None
    optimises = False


_running = _Running()


class NotSettledError(BaseException):
    """A run without side effects met something that has not been set up by its first call yet."""


class StoreState:
    """The tables of the param store; one param may stand there under several names."""

    def __init__(self) -> None:
        self._tables = {name: dict(table) for name, table in _parents.store_tables().items()}
        params = self._tables["_params"].values()
        self._with_grad = {param for param in params if param.grad is not None}

    def clear_grads(self, params: Iterable[torch.Tensor]) -> None:
        """
        Clear gradients: None where there was none, elsewhere zeros as Pyro leaves them.

        :param params: those of the step.
        """
        for param in params:
            if param.grad is not None:
                param.grad = torch.zeros_like(param.grad) if param in self._with_grad else None

    def restore(self) -> None:
        """Forget params that have come, and put back those that have gone."""
        for name, table in _parents.store_tables().items():
            table.clear()
            table.update(self._tables[name])


class Buffers:
    """
    Buffers of the modules that this thread calls inside the context, as they were before.

    Models are functions, so that one does not know beforehand which modules they will call.

    :param aside: whether modules work on copies inside the context. Then not even autograd sees a
        change of the buffers themselves, of which it keeps some for its backward pass.
    :param settled: whether a module that its first call sets up is an error.
    """

    def __init__(self, aside: bool = False, settled: bool = False) -> None:
        self._saved: list[tuple[nn.Module, str, torch.Tensor | None, torch.Tensor | None]] = []
        self._seen: set[nn.Module] = set()
        self._lazy: list[nn.Module] = []
        self._thread = threading.get_ident()
        self._aside, self._settled = aside, settled
        #: What was called.
        self.called: Called = WeakSet()

    def __enter__(self) -> Buffers:
        if not torch.jit.is_tracing():
            self._handle = register_module_forward_pre_hook(self._look)
        return self

    def __exit__(self, *_: Any) -> None:
        if hasattr(self, "_handle"):
            self._handle.remove()

    def _look(self, module: nn.Module, _: Any) -> None:
        # The hook is the process's, and other threads train nets of their own.
        if threading.get_ident() == self._thread:
            if self._settled and not is_settled(module):
                raise NotSettledError
            self.called.add(module)
            self.keep(module)

    def keep(self, module: nn.Module) -> None:
        """Remember what this module holds now, unless it has been looked at before."""
        if not module._buffers or module in self._seen:
            return
        self._seen.add(module)
        for name, buffer in module._buffers.items():
            if buffer is not None and nn.parameter.is_lazy(buffer):
                self._lazy.append(module)
                continue
            if buffer is None:
                self._saved.append((module, name, None, None))
                continue
            # Another context may have put the buffer aside: this one is to outlast it.
            own: torch.Tensor = getattr(buffer, "_set_aside", buffer)
            value: Any = own.detach().clone()
            self._saved.append((module, name, buffer if self._aside else own, value))
            if self._aside:
                value._set_aside = own
                module._buffers[name] = value

    def restore(self) -> None:
        """Put the values back, into the tensors that held them."""
        with torch.no_grad():
            for module, name, buffer, value in self._saved:
                module._buffers[name] = buffer
                if buffer is not None and value is not None and not self._aside:
                    buffer.copy_(value)
        for module in self._lazy:  # their shape is known by now, and may stay so
            held = [buffer for buffer in module._buffers.values() if buffer is not None]
            if not any(map(nn.parameter.is_lazy, held)):
                getattr(module, "reset_running_stats", lambda: None)()


def is_settled(program: Any) -> bool:
    """Whether lazy params have a shape, and an autoguide knows its model."""
    own = getattr(program, "__dict__", {})
    if own.get("prototype_trace", program) is None:
        return False
    params = own["_parameters"].values() if isinstance(program, nn.Module) else ()
    return not any(param is not None and nn.parameter.is_lazy(param) for param in params)


@contextmanager
def unchanged_buffers(module: nn.Module | None = None, settled: bool = False) -> Iterator[None]:
    """
    Keep the running averages of batch normalisation unchanged in a run that is not part of the
    step.

    :param module: whose buffers; None for those of all modules that are called inside.
    :param settled: whether a module that its first call sets up is an error.
    """
    saved = Buffers(aside=True, settled=settled)
    try:
        if module is None:
            with saved:
                yield
        else:
            for part in module.modules():
                saved.keep(part)
            yield
    finally:
        saved.restore()


@contextmanager
def looking(settled: bool = False) -> Iterator[None]:
    """
    Run model or guide without side effects.

    Afterwards buffers, the param store and the random state are as before: params with random
    initial values are initialised again, to the same values, and a seed gives the same draws with
    and without such a run.

    :param settled: whether to stop before something is set up by its first call, since that would
        take random numbers here, where they are taken back.
    :raises NotSettledError: if so.
    """
    state, store = get_rng_state(), StoreState()
    try:
        with unchanged_buffers(settled=settled):
            yield
    finally:
        store.restore()
        set_rng_state(state)


class StepSnapshot:
    """
    A copy of what a step may change: params, optimisers, gradients, the param store, buffers,
    counters.

    Params and optimisers are copied right before the optimiser moves them, by
    :func:`optimiser_step`; nothing before that does.

    :param loss: whose counters are kept.
    """

    def __init__(self, loss: Any = None) -> None:
        self._counters: list[tuple[Stateful, dict[str, Any]]] = []
        self.keep_counters(loss)
        self.store = StoreState()
        self.buffers = Buffers()
        self.optimiser: OptimiserState | None = None

    def keep_counters(self, loss: Any) -> None:
        """Keep the counters of one more loss."""
        if isinstance(loss, Stateful) and not any(one is loss for one, _ in self._counters):
            self._counters.append((loss, loss.get_state()))

    def restore(self) -> None:
        """Restore everything except gradients and random state."""
        if self.optimiser is not None:
            self.optimiser.restore()
        for loss, counters in self._counters:
            loss.set_state(counters)
        self.buffers.restore()
        self.store.restore()


@contextmanager
def transaction(loss: Any) -> Iterator[StepSnapshot]:
    """
    The snapshot that is undone if the context ends in any exception.

    :param loss: whose counters are kept.
    """
    outer = _running.snapshot
    if outer is not None:  # it undoes what is done in here too
        outer.keep_counters(loss)
        yield outer
        return
    snapshot = _running.snapshot = StepSnapshot(loss)
    try:
        with snapshot.buffers:
            yield snapshot
        note(loss, snapshot.buffers.called)
    except BaseException:
        snapshot.restore()
        raise
    finally:
        _running.snapshot = None


def is_running() -> bool:
    """Whether this thread is in a :func:`transaction`."""
    return _running.snapshot is not None


@contextmanager
def optimiser_step(
    optim: PyroOptim, params: Sequence[torch.Tensor], *steps: StepSnapshot
) -> Iterator[OptimiserState | None]:
    """
    Take the step of an optimiser completely, or undo the whole step.

    :param optim: the optimiser.
    :param params: what it moves.
    :param steps: what has gone before in the same step; without, the optimiser alone is undone.
    """
    if _running.optimises:
        yield None
        return
    steps = steps or (StepSnapshot(),)
    _running.optimises = True
    try:
        steps[0].optimiser = OptimiserState(optim, params)
        yield steps[0].optimiser
    except BaseException:
        steps[0].store.clear_grads(params)
        for step in reversed(steps):
            step.restore()
        raise
    finally:
        _running.optimises = False


class _Armed:
    """
    An optimiser that undoes the whole step of an SVI if its own part fails.

    It replaces the SVI's optimiser from the end of ``loss_and_grads`` to the call that follows,
    looks and behaves like that one, and shares all attributes with it.
    """

    __slots__ = ("_arming",)
    _arming: tuple[SVI, PyroOptim, int, list[StepSnapshot]]

    def __call__(self, params: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        svi, optim, _, steps = self._arming
        svi.optim = optim
        params = list(params)
        with optimiser_step(optim, params, *steps):
            optim(params, *args, **kwargs)


_classes: dict[type, type] = {}


def _armed_class(cls: type) -> type:
    if cls not in _classes:
        names = {"__slots__": (), "__module__": cls.__module__}
        _classes[cls] = type(cls.__name__, (_Armed, cls), names)
    return _classes[cls]


def arm(step: StepSnapshot) -> None:
    """
    Have the optimiser of the SVI whose step this is undo the step if it fails.

    A loss does not know which SVI calls it; the SVI is found among the callers. In the user's own
    loop there is none: the loss cannot see the optimiser there.

    :param step: what has been done so far.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "step" and isinstance(frame.f_locals.get("self"), SVI):
            break
        frame = frame.f_back  # type: ignore[assignment]
    else:
        return
    svi = frame.f_locals["self"]
    steps, optim = [step], svi.optim
    if isinstance(optim, _Armed):  # another loss of the same step, or one that never got this far
        _, optim, number, earlier = optim._arming
        steps = [*earlier, step] if number == id(frame) else steps
    armed: Any = object.__new__(_armed_class(type(optim)))
    armed.__dict__ = vars(optim)
    armed._arming = svi, optim, id(frame), steps
    svi.optim = armed
