# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Record what a step computes as one graph of tensor operations, without its Python."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyro
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import spread_core
from pyro_spread import _parents
from spread_core.messages import compiled as messages

_TORCH = str(Path(torch.__file__).parent)
_DISTRIBUTIONS = str(Path(torch.distributions.__file__).parent)
_PYRO = Path(pyro.__file__).parent
# Whose reads of values are checks: they run on the values of the step that is recorded. What
# distributions do beside, rejection sampling say, depends on values.
_CHECKS = (
    str(Path(_DISTRIBUTIONS) / "distribution.py"),
    *(str(_PYRO / part) for part in ("util.py", "infer", "poutine", "ops/provenance.py")),
    str(Path(spread_core.__file__).parent),
    str(Path(__file__).parent),
)
_ATEN = torch.ops.aten
_READS = (_ATEN._local_scalar_dense.default, _ATEN.equal.default)
# Reads that no operation shows.
_UNSEEN = (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__)
# Operations of this tag give as many elements as the values say, and so does a mask as an index.
_SIZED_BY_VALUES = torch.Tag.dynamic_output_shape
_INDEXING = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)


class Recording:
    """
    What a recorded step leaves for every step that repeats it.

    :param settled: what was decided of what it computes; without, it is decided now.
    """

    def __init__(self, settled: Sequence[bool] | None = None) -> None:
        self._given = settled
        #: What was decided.
        self.settled: list[bool] = []
        #: Whether each of the tensors that must be so is finite.
        self.finite: list[torch.Tensor] = []
        #: Functions to call after the step, with their tensors.
        self.later: list[tuple[Callable[..., Any], Any]] = []
        #: Functions whose numbers are asked for before the step, and the tensors that hold them.
        self.numbers: list[tuple[Callable[[], float], torch.Tensor]] = []
        #: Functions that decide, in their order.
        self.deciders: list[Callable[[], bool]] = []

    def settle(self, decide: Callable[[], bool]) -> bool:
        """What is decided next."""
        if self._given is not None:
            found = self._given[len(self.deciders)]
        else:
            with _parents.unrecorded():
                found = decide()
        self.deciders.append(decide)
        self.settled.append(found)
        return found


_current: ContextVar[Recording | None] = ContextVar("pyro_spread_recording", default=None)


def values_known() -> bool:
    """Whether the values of tensors are those of this step only, and no graph is recorded."""
    return _current.get() is None and not torch.jit.is_tracing()


def when_known(function: Callable[..., Any], *values: Any) -> None:
    """
    Call a function with values, in a recorded step as soon as they are known, at every step.

    :param function: changes nothing that the rest of the step depends on.
    :param values: tensors, or tuples of them.
    """
    recording = _current.get()
    if recording is None:
        function(*values)
    else:
        recording.later.append((function, values))


def number(function: Callable[[], float]) -> Any:
    """
    A number that is another one at each step; in a recorded step a tensor that holds it.

    :param function: computes it.
    """
    recording = _current.get()
    if recording is None:
        return function()
    with _parents.unrecorded():  # or it would be a constant
        held = torch.tensor(function())
    recording.numbers.append((function, held))
    return held


def settle(decide: Callable[[], bool]) -> bool:
    """
    Decide what a step computes; recorded steps are different graphs then.

    :param decide: decides, and is called once in every step.
    """
    recording = _current.get()
    return decide() if recording is None else recording.settle(decide)


def to_be_finite(x: torch.Tensor) -> None:
    """Have every recorded step look whether ``x`` is finite."""
    recording = _current.get()
    if recording is not None:
        recording.finite.append(torch.isfinite(x.detach()).all())


@contextmanager
def recorded(settled: Sequence[bool] | None) -> Iterator[Recording]:
    """
    Run a step in here, under ``make_fx``, to record it.

    :param settled: what was decided of it, if anything was.
    :raises NotImplementedError: if what is computed depends on values; the message has the line.
    """
    recording = Recording(settled)
    before, stored = _other_random_states(), _versions()
    token = _current.set(recording)
    try:
        with _Items(), _Reads():
            yield recording
    finally:
        _current.reset(token)
    if changed := sorted(dict(_versions().items() ^ stored.items())):
        raise NotImplementedError(messages.changes_params(changed[0]))
    if any(not np.array_equal(a, b) for a, b in zip(before, _other_random_states(), strict=True)):
        raise NotImplementedError(messages.other_randomness())


def draw_directly(graph: torch.fx.Graph) -> None:
    """
    Replace draws into empty tensors by draws, for which ``torch.compile`` needs no copies.

    :param graph: of a recorded step.
    """
    for node in list(graph.nodes):
        if node.target is not _ATEN.normal_.default or len(node.args) > 1 or node.kwargs:
            continue
        (empty,) = node.args
        if empty.target is _ATEN.empty.memory_format and len(empty.users) == 1:
            with graph.inserting_before(node):
                drawn = graph.call_function(_ATEN.randn.default, empty.args, empty.kwargs)
            drawn.meta = node.meta
            node.replace_all_uses_with(drawn)
            graph.erase_node(node)
            graph.erase_node(empty)


def _other_random_states() -> list[np.ndarray[Any, Any]]:
    state: Any = np.random.get_state(legacy=False)
    _, internal, _ = random.getstate()
    counts = [state["state"]["pos"], state["has_gauss"], *internal]
    return [state["state"]["key"], np.array(counts)]


def _versions() -> dict[str, tuple[int, int, int]]:
    """What tells whether a param of the store has another value or is another tensor."""
    stored = _parents.stored_params().items()
    return {name: (id(p), p.data_ptr(), p._version) for name, p in stored}


class _Items(TorchFunctionMode):
    """What Pyro does with numbers that it takes off tensors, done without them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item and (frame := _caller()).f_code.co_filename in _OF_PYRO:
            return _OF_PYRO[frame.f_code.co_filename](args[0], frame)
        if func in _UNSEEN and not _is_check(frame := _caller()):
            raise NotImplementedError(messages.read_value(*_place(frame)))
        return func(*args, **(kwargs or {}))


def _reported(value: torch.Tensor, _: FrameType) -> torch.Tensor:
    """ELBOs report a number, or subtract it to leave out a gradient."""
    return value.detach()


def _neither_zero_nor_one(*_: Any) -> float:
    """A factor that is one, or zero, now and then goes the way of all others."""
    return math.nan


def _index(value: torch.Tensor, frame: FrameType) -> Any:
    """A plate that is iterated over gives the same indices at every step if it takes all."""
    plate = frame.f_locals["self"]
    if getattr(plate, "subsample_size", None) not in (None, getattr(plate, "size", None)):
        raise NotImplementedError(messages.iterated_subsample(plate.name))
    with _parents.unrecorded():
        return value.item()


_OF_PYRO: dict[str, Callable[[torch.Tensor, FrameType], Any]] = {
    **dict.fromkeys(map(str, (_PYRO / "infer").glob("*.py")), _reported),
    str(_PYRO / "distributions" / "util.py"): _neither_zero_nor_one,
    str(_PYRO / "poutine" / "indep_messenger.py"): _index,
}


class _Reads(TorchDispatchMode):
    """Let checks see values, and refuse all else that depends on them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READS:
            # A check asks whether; other numbers would stay in the graph for ever.
            asks = func is not _READS[0] or args[0].dtype == torch.bool
            if not (_is_check(frame := _caller()) and asks):
                raise NotImplementedError(messages.read_value(*_place(frame)))
            with _parents.unrecorded():
                return func(*args, **kwargs)
        if kwargs.get("generator") is not None:
            raise NotImplementedError(messages.own_generator(*_place(_caller())))
        sized = _has_mask(args[1]) if func in _INDEXING else _SIZED_BY_VALUES in func.tags
        if sized:
            raise NotImplementedError(messages.size_of_values(*_place(_caller())))
        return func(*args, **kwargs)


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _caller() -> FrameType:
    """The innermost frame outside of torch, whose distributions do not count as torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and (not name.startswith(_TORCH) or name.startswith(_DISTRIBUTIONS)):
            return frame
        frame = frame.f_back
    raise AssertionError("a step is always called by something")


def _is_check(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_CHECKS)


def _place(frame: FrameType) -> tuple[str, int]:
    return frame.f_code.co_filename, frame.f_lineno
