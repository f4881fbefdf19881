# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Transactions: undo what a failed step changed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import nn

from pyro_spread._called_modules import note
from pyro_spread._snapshot import StepSnapshot
from pyro_spread._together import move, moves_all_or_none, together


class _Running(threading.local):
    """The transactions that this thread has not finished."""

    snapshot: StepSnapshot | None = None
    optimises = False


_running = _Running()


@contextmanager
def unchanged_buffers(module: nn.Module | None = None) -> Iterator[None]:
    """
    Keep the running averages of batch normalisation unchanged in a run that is not part of the
    step.

    :param module: whose buffers; None for those of all modules that are called inside.
    """
    before = StepSnapshot(aside=True)
    try:
        if module is None:
            with before:
                yield
        else:
            for part in module.modules():
                before.keep_buffers(part)
            yield
    finally:
        before.restore()


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
    before = StepSnapshot(aside=True, settled=settled)
    before.keep_store()
    before.keep_random_state()
    try:
        with before:
            yield
    finally:
        before.restore()


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
    snapshot = _running.snapshot = StepSnapshot()
    snapshot.keep_counters(loss)
    snapshot.keep_store()
    try:
        with snapshot:
            yield snapshot
        note(loss, snapshot.called)
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
) -> Iterator[StepSnapshot | None]:
    """
    Take the step of an optimiser completely, or undo the whole step.

    :param optim: the optimiser.
    :param params: what it moves.
    :param steps: what has gone before in the same step; without, the optimiser alone is undone.
    :return: the snapshot from before the step; None inside the step of another optimiser.
    """
    if _running.optimises:
        yield None
        return
    if not steps:
        steps = (StepSnapshot(),)
        steps[0].keep_store()
    _running.optimises = True
    try:
        if not moves_all_or_none(optim, params):
            steps[0].keep_optimiser(optim, params)
        yield steps[0]
    except BaseException:
        steps[0].clear_grads(params)
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
    _arming: tuple[SVI, PyroOptim, int, list[StepSnapshot], bool]

    def __call__(self, params: Iterable[torch.Tensor], *args: Any, **kwargs: Any) -> None:
        svi, optim, _, steps, at_once = self._arming
        svi.optim = optim
        params = list(params)
        with ExitStack() as stack:
            if at_once:
                stack.enter_context(together())
            if steps:
                stack.enter_context(optimiser_step(optim, params, *steps))
            move(optim, params, *args, **kwargs)
        if at_once:  # or SVI would fill them with zeros, to which the next step adds
            for param in params:
                if param.grad is not None:
                    param.grad, param._had_gradient = None, True  # type: ignore[attr-defined]


def zeros_for_none(params: Iterable[torch.Tensor]) -> None:
    """
    Give a gradient of zero to params that have had one, and have none in this step.

    SVI leaves zeros there, by which momentum and weight decay go on.

    :param params: those of the step.
    """
    for param in params:
        if param.grad is None and hasattr(param, "_had_gradient"):
            param.grad = torch.zeros_like(param)


_classes: dict[type, type] = {}


def _armed_class(cls: type) -> type:
    if cls not in _classes:
        names = {"__slots__": (), "__module__": cls.__module__}
        _classes[cls] = type(cls.__name__, (_Armed, cls), names)
    return _classes[cls]


def arm(step: StepSnapshot | None, at_once: bool = False) -> None:
    """
    Have the optimiser of the SVI whose step this is undo the step if it fails.

    A loss does not know which SVI calls it; the SVI is found among the callers. In the user's own
    loop there is none: the loss cannot see the optimiser there.

    :param step: what has been done so far; None if there is nothing to undo.
    :param at_once: whether the optimiser may move all params at once.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "step" and isinstance(frame.f_locals.get("self"), SVI):
            break
        frame = frame.f_back  # type: ignore[assignment]
    else:
        return
    svi = frame.f_locals["self"]
    steps, optim = [] if step is None else [step], svi.optim
    if isinstance(optim, _Armed):  # another loss of the same step, or one that never got this far
        _, optim, number, earlier, _ = optim._arming
        steps = [*earlier, *steps] if number == id(frame) else steps
    armed: Any = object.__new__(_armed_class(type(optim)))
    armed.__dict__ = vars(optim)
    armed._arming = svi, optim, id(frame), steps, at_once
    svi.optim = armed
