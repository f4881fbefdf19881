# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Check that an optimiser can step from the state in a file, before it is loaded."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_spread import _parents
from spread_core.messages import checkpoints


def check_state(
    name: str, param: torch.Tensor, build: Callable[[], Any], state: Any, strict: bool
) -> None:
    """
    Refuse a state from which the next step of a param would fail.

    Structure is compared with what the optimiser holds after one step from nothing under the same
    settings, and then that step is made from the state; ``param`` is put back.

    :param name: of the param.
    :param param: the param.
    :param build: makes an optimiser of it.
    :param state: its state.
    :param strict: whether a setting more or less is an error.
    :raises ValueError: saying what is wrong.
    """
    fresh = build()
    whole = state if _parents.is_scheduler(fresh) else {"optimizer": state}
    base = whole["optimizer"]
    known = is_of_library(_base(fresh))
    _check_settings(name, _parents.optimiser_state(_base(fresh)), base, known and strict)
    if _parents.is_scheduler(fresh) and is_of_library(fresh):
        found, live = whole["scheduler"], fresh.state_dict()
        if (strict and found.keys() != live.keys()) or not _alike(found, live):
            raise ValueError(checkpoints.unusable_state(name, "its schedule has another structure"))
    grad = _grad_that_works(param, build)
    if grad is None:  # one cannot look at a step of this optimiser, which waits for something else
        return
    empty = {**base, "state": _parents.optimiser_state(_base(build()))["state"]}
    with _Trial(param, grad) as trial:
        reference = trial.step(name, build, {**whole, "optimizer": empty}, len(whole) > 1)
    held = _base(reference).state.get(param, {})
    with _Trial(param, grad) as trial:
        tried = build()
        _load(tried, whole)
        start = dict(_base(tried).state.get(param, {}))
        if known and start:
            _check_held(name, start, held)
        moments = [v for v in start.values() if isinstance(v, torch.Tensor)]
        finite = all(bool(torch.isfinite(v).all()) for v in moments)
        trial.step(name, build, whole, len(whole) > 1)
        if known and finite and not bool(torch.isfinite(param.detach()).all()):
            raise ValueError(checkpoints.unusable_state(name, "the next step would end in NaN"))


def is_of_library(value: Any) -> bool:
    """Whether torch, Pyro or this package defines the class, whose state dicts are complete."""
    return type(value).__module__.partition(".")[0] in ("torch", "pyro", "pyro_spread")


class _Trial:
    """Steps of a param inside the context are undone."""

    def __init__(self, param: torch.Tensor, grad: torch.Tensor) -> None:
        self._param, self._grad = param, grad

    def __enter__(self) -> _Trial:
        self._before = self._param.detach().clone(), self._param.grad
        with torch.no_grad():
            self._param.fill_(1)
        self._param.grad = self._grad.clone()
        return self

    def __exit__(self, *_: Any) -> None:
        with torch.no_grad():
            self._param.copy_(self._before[0])
        self._param.grad = self._before[1]

    def step(self, name: str, build: Callable[[], Any], whole: Any, scheduled: bool) -> Any:
        """One step, and one of the schedule."""
        optimizer = build()
        try:
            _load(optimizer, whole)
            _base(optimizer).step()
            if scheduled:
                _advance(optimizer)
        except Exception as error:  # whatever torch says of it
            what = f"{type(error).__name__}: {error}"
            raise ValueError(checkpoints.unusable_state(name, what)) from error
        return optimizer


def _advance(scheduler: Any) -> None:
    with suppress(ValueError):  # a schedule that has come to its end
        scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))


def _base(optimizer: Any) -> Any:
    return optimizer.optimizer if _parents.is_scheduler(optimizer) else optimizer


def _load(optimizer: Any, whole: dict[str, Any]) -> None:
    # A copy, since torch takes the tensors themselves.
    state = whole if _parents.is_scheduler(optimizer) else whole["optimizer"]
    _parents.load_optimiser_state(optimizer, copy.deepcopy(state))


def _grad_that_works(param: torch.Tensor, build: Callable[[], Any]) -> torch.Tensor | None:
    # Of its own making: a param may carry provenance.
    dense = torch.ones(param.shape, dtype=param.dtype, device=param.device)
    for grad in (dense, dense.to_sparse()):
        try:
            optimizer = build()  # a schedule's steps know it by a weak reference
            with _Trial(param, grad):
                _base(optimizer).step()
        except Exception:
            continue
        return grad
    return None


def _check_settings(name: str, live: Any, found: Any, strict: bool) -> None:
    if not isinstance(found, dict) or not {"state", "param_groups"} <= found.keys():
        raise ValueError(checkpoints.unusable_state(name, "it has neither state nor settings"))
    groups, states = found["param_groups"], found["state"]
    wanted = live["param_groups"]
    right = isinstance(groups, list) and isinstance(states, dict) and len(groups) == len(wanted)
    if not right or not all(isinstance(group, dict) for group in groups):
        raise ValueError(checkpoints.unusable_state(name, "its settings have another structure"))
    for group, other in zip(groups, wanted, strict=True):
        if group.get("params") != other["params"] or not states.keys() <= set(other["params"]):
            raise ValueError(checkpoints.unusable_state(name, "it is that of other params"))
        if strict and group.keys() != other.keys():
            odd = sorted(map(str, group.keys() ^ other.keys()))
            raise ValueError(checkpoints.unusable_state(name, f"it has other settings: {odd}"))
        for key in group.keys() & other.keys() if strict else ():
            if not _alike(group[key], other[key]):
                raise ValueError(checkpoints.unusable_state(name, f"{key} is {group[key]!r}"[:80]))


def _check_held(name: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if found.keys() != wanted.keys():
        odd = sorted(map(str, found.keys() ^ wanted.keys()))
        raise ValueError(checkpoints.unusable_state(name, f"it has, or lacks, {odd}"))
    for key, value in found.items():
        if not _alike(value, wanted[key]):
            raise ValueError(checkpoints.unusable_state(name, f"'{key}' is {_kind(value)}"))
    if "step" in found:
        count = float(found["step"])
        if not (math.isfinite(count) and count >= 0 and count == int(count)):
            raise ValueError(checkpoints.unusable_state(name, f"its number of steps is {count}"))


def _kind(value: Any) -> str:
    is_tensor = isinstance(value, torch.Tensor)
    return f"{value.dtype}{list(value.shape)}" if is_tensor else type(value).__name__


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are of one structure: numbers, or tensors of one shape and type."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return _kind(one) == _kind(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_alike(one[key], other[key]) for key in one.keys() & other.keys())
    if isinstance(one, list | tuple):
        pairs = isinstance(other, list | tuple) and len(one) == len(other)
        return pairs and all(map(_alike, one, other))
    if type(one) in (int, float) and type(other) in (int, float):
        return True
    # None stands for "as torch sees fit", which a program may say or leave open.
    free = (type(None), bool)
    return type(one) is type(other) or (type(one) in free and type(other) in free)
