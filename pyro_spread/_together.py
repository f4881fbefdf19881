# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Step all params of a Pyro optimiser at once, where it has one optimiser of torch for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from pyro_spread import _parents
from pyro_spread._kinds import Places, is_laid_out_like

# Those whose step of many params is that of each by itself, and of them those that torch has fused.
_FUSED = (Adam, AdamW, SGD, Adagrad)
_ELEMENTWISE = (*_FUSED, RMSprop, Adadelta, Adamax, NAdam, RAdam)
# So many sets of params are remembered of an optimiser.
_MOST_SETS = 8

# What has been found in this step; None where params are stepped one by one.
_step: ContextVar[dict[Any, _Together | None] | None] = ContextVar("pyro_spread_step", default=None)


@contextmanager
def together() -> Iterator[None]:
    """A context in which :func:`move` steps all params at once."""
    token = _step.set({})
    try:
        yield
    finally:
        _step.reset(token)


def move(optim: PyroOptim, params: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> None:
    """
    A step of an optimiser.

    Its state stays where it is, with torch's optimiser of each param.

    :param optim: the optimiser.
    :param params: what it moves.
    """
    found = None if args or kwargs else _found(optim, params)
    if found is None:
        optim(params, *args, **kwargs)
    else:
        found.step(optim)


def moves_all_or_none(optim: PyroOptim, params: Iterable[torch.Tensor]) -> bool:
    """
    Whether :func:`move` cannot fail half way, so that nothing of it needs to be undone.

    :param optim: the optimiser.
    :param params: what it moves.
    """
    own = getattr(optim, "moves_all_or_none", None)
    if own is not None:
        return bool(own(params))
    return _found(optim, list(params)) is not None


def _found(optim: PyroOptim, params: Sequence[torch.Tensor]) -> _Together | None:
    found_before = _step.get()
    if found_before is None or not params:
        return None
    key = frozenset(map(id, params))
    if (optim, key) not in found_before:
        sets = _known.setdefault(optim, {})
        found = sets.pop(key, None)
        if found is None or not found.is_as_it_was(optim):
            found = _Together(optim, params) if _can_go_together(optim, params) else None
        if len(sets) == _MOST_SETS:
            sets.clear()
        if found is not None:
            sets[key] = found
        found_before[optim, key] = found
    return found_before[optim, key]


class _Together:
    """One optimiser of torch for many params, which shares the state of those that each has."""

    def __init__(self, optim: PyroOptim, params: Sequence[torch.Tensor]) -> None:
        self._parts = [_part_of(optim, param) for param in params]
        hooks = chain.from_iterable(_hooks(part.base) for part in self._parts)
        self._places = Places([*(part.group for part in self._parts), *hooks])
        by_options: dict[Any, dict[str, Any]] = {}
        for part in self._parts:
            options = {name: value for name, value in part.group.items() if name != "params"}
            # Of some options the values are lists.
            own = by_options.setdefault(repr(options), {**options, "params": []})
            own["params"].append(part.param)
        cls: Any = type(self._parts[0].base)
        # Elsewhere torch itself takes the fastest.
        if cls in _FUSED and all(map(_may_be_fused, self._parts)):
            by_options = {key: {**own, "fused": True} for key, own in by_options.items()}
        self._all = cls(list(by_options.values()))
        for part in self._parts:
            if part.state is not None:
                self._all.state[part.param] = part.state

    def is_as_it_was(self, optim: PyroOptim) -> bool:
        """Whether settings and states are still those of the optimisers of the params."""
        for param, stride, kept, base, group, state in self._parts:
            if (
                param.stride() != stride
                or optim.optim_objs.get(param) is not kept
                or base.param_groups[0] is not group
                or base.state.get(param) is not state
            ):
                return False
        return self._places.are_as_they_were()

    def step(self, optim: PyroOptim) -> None:
        """Clip all gradients, and then move all params."""
        for part in self._parts:
            if (clip := optim.grad_clip[part.param]) is not None:
                clip(part.param)
        self._all.step()
        for part in self._parts:
            if part.base is not part.kept:  # a schedule asks whether its optimiser has stepped
                part.base._opt_called = True  # type: ignore[attr-defined]


class _Part(NamedTuple):
    """A param, and what its own optimiser holds."""

    param: torch.Tensor
    stride: tuple[int, ...]
    #: What Pyro keeps for the param: its optimiser, or a schedule of that.
    kept: Any
    base: Optimizer
    group: dict[str, Any]
    state: dict[str, Any] | None


def _part_of(optim: PyroOptim, param: torch.Tensor) -> _Part:
    kept = optim.optim_objs[param]
    base = _base(kept)
    return _Part(param, param.stride(), kept, base, base.param_groups[0], base.state.get(param))


_known: WeakKeyDictionary[PyroOptim, dict[frozenset[int], _Together]] = WeakKeyDictionary()


def _base(optimiser: Any) -> Optimizer:
    found: Optimizer = optimiser.optimizer if _parents.is_scheduler(optimiser) else optimiser
    return found


def _can_go_together(optim: PyroOptim, params: Sequence[torch.Tensor]) -> bool:
    """Whether each param has an optimiser that has stepped, and one step of all is theirs."""
    if type(optim).__call__ not in (PyroOptim.__call__, PyroLRScheduler.__call__):
        return False
    objects = optim.optim_objs
    if any(param not in objects for param in params):
        return False
    bases = [_base(objects[param]) for param in params]
    cls = type(bases[0])
    return cls in _ELEMENTWISE and all(
        type(base) is cls
        and _is_plain(base.param_groups)
        and (base.state.get(param) or _is_stateless(base.param_groups[0], cls))
        and not any(_hooks(base))
        and not (param.grad is not None and param.grad.is_sparse)
        for base, param in zip(bases, params, strict=True)
    )


def _may_be_fused(part: _Part) -> bool:
    """Whether torch's fused step on the CPU may be taken, which the user has not decided on."""
    is_open = part.group.get("fused") is None and not part.group.get("foreach")
    on_cpu = part.param.device.type == "cpu" and part.param.is_floating_point()
    # It reads param, gradient and state as they lie in memory, and does not look at strides.
    alike = [value for value in (part.state or {}).values() if isinstance(value, torch.Tensor)]
    alike = [value for value in alike if value.shape == part.param.shape]
    alike.append(torch.empty_like(part.param, device="meta"))
    return is_open and on_cpu and all(is_laid_out_like(each, part.param) for each in alike)


def _hooks(base: Optimizer) -> tuple[dict[Any, Any], dict[Any, Any]]:
    return base._optimizer_step_pre_hooks, base._optimizer_step_post_hooks


def _is_plain(groups: list[dict[str, Any]]) -> bool:
    (group, *others) = groups
    special = group.get("capturable") or group.get("differentiable")
    values = _parents.tree_leaves([v for n, v in group.items() if n != "params"])
    tensors = any(isinstance(value, torch.Tensor) for value in values)
    return not others and not special and not tensors


def _is_stateless(group: dict[str, Any], cls: type) -> bool:
    return cls is SGD and not group["momentum"]
