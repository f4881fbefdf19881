# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Get and set the whole state of Pyro's optimisers, without waiting for their next step."""

from __future__ import annotations

from typing import Any

import torch
from pyro.optim import PyroOptim

from pyro_spread import _parents
from pyro_spread._optimiser_trial import check_state
from pyro_spread.optim import Composite
from spread_core.checkpoint_checks import Commit
from spread_core.messages import checkpoints


def describe(optim: PyroOptim) -> Any:
    """Classes of an optimiser, as JSON."""
    if isinstance(optim, Composite):
        return {role: describe(part) for role, part in optim.parts().items()}
    parts = [optim, getattr(optim, "pt_scheduler_constructor", None), optim.pt_optim_constructor]
    names = [type(optim).__name__] + [getattr(part, "__name__", None) for part in parts[1:]]
    return " of ".join(name for name in names if name)


def state_of(optim: PyroOptim) -> dict[str, Any]:
    """
    Like ``get_state``, with what was loaded before and is waiting for its param.

    :raises ValueError: if params are in no store.
    """
    if isinstance(optim, Composite):
        parts = {role: state_of(part) for role, part in optim.parts().items()}
        return parts | optim.own_state()
    state = optim.get_state()
    if None in state:
        raise ValueError(
            "the optimiser moves params that are not in the param store, as with "
            "pyro.settings.set(module_local_params=True). Save such modules by torch, or switch "
            "it off"
        )
    if keeps_own_state(optim):
        return state
    # Pyro steps through a set of tensors, whose order is that of their addresses.
    return dict(sorted({**_parents.waiting_states(optim), **state}.items()))


def has_stepped(optim: PyroOptim) -> bool:
    """Whether an optimiser has moved params in this process."""
    if isinstance(optim, Composite):
        return any(map(has_stepped, optim.parts().values()))
    return bool(optim.optim_objs)


def keeps_own_state(optim: PyroOptim) -> bool:
    """Whether a class outside Pyro defines how its state is kept."""
    return type(optim).get_state is not PyroOptim.get_state


def prepare(optim: PyroOptim, state: dict[str, Any], strict: bool) -> Commit:
    """
    Prepare to restore what :func:`state_of` returned; the optimiser is not changed yet.

    Pyro lets state wait for the next step of its param. Here it is in place at once, since a
    schedule may move before that, and the run may be saved again.

    :param optim: the optimiser.
    :param state: its state.
    :param strict: whether a difference in what comes back is an error.
    :return: a function that puts it in place.
    :raises Exception: if torch or the state's structure refuses.
    """
    if isinstance(optim, Composite):
        parts = optim.parts()
        commits = [prepare(part, state[role], strict) for role, part in parts.items()]
        rest = {key: value for key, value in state.items() if key not in parts}
        optim.check_own_state(rest)

        def commit_parts() -> None:
            for commit in commits:
                commit()
            optim.set_own_state(rest)

        return commit_parts
    if keeps_own_state(optim):
        return lambda: optim.set_state(state)
    params = _parents.stored_params()
    ready = {
        name: _rebuilt(optim, name, each, strict) for name, each in state.items() if name in params
    }
    waiting = {name: each for name, each in state.items() if name not in params}

    def commit() -> None:
        optim.optim_objs.clear()
        optim.grad_clip.clear()
        _parents.waiting_states(optim).clear()
        for name, optimizer in ready.items():
            optim.optim_objs[params[name]] = optimizer
            optim.grad_clip[params[name]] = _parents.clipping_of(optim, params[name])
        _parents.waiting_states(optim).update(waiting)

    return commit


def _rebuilt(optim: PyroOptim, name: str, state: Any, strict: bool) -> Any:
    param = _parents.stored_params()[name]
    optimizer = _parents.optimiser_of(optim, param)
    if _parents.is_scheduler(optimizer) != ("scheduler" in state):
        raise ValueError(checkpoints.not_taken_back(name))
    own = state.get("scheduler", {})
    # A schedule's state is its attributes: none of them may take the place of a method.
    if any(callable(getattr(type(optimizer), str(key), None)) for key in own):
        raise ValueError(checkpoints.not_taken_back(name))
    check_state(name, param, lambda: _parents.optimiser_of(optim, param), state, strict)
    _parents.load_optimiser_state(optimizer, state)
    if strict and not contains(_parents.optimiser_state(optimizer), state):
        raise ValueError(checkpoints.not_taken_back(name))
    return optimizer


def contains(whole: Any, part: Any) -> bool:
    """Whether ``whole`` contains all of ``part``, bit for bit."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and contains(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, list | tuple):
        return (
            isinstance(whole, list | tuple)
            and len(whole) == len(part)
            and all(contains(one, other) for one, other in zip(whole, part, strict=True))
        )
    if isinstance(part, torch.Tensor):
        return (
            isinstance(whole, torch.Tensor)
            and whole.dtype == part.dtype
            and whole.shape == part.shape
            and same_bits(whole, part)
        )
    return type(whole) is type(part) and (whole == part or (whole != whole and part != part))


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one shape and type are equal, NaN included."""
    one, other = (x.detach().cpu().contiguous().reshape(-1) for x in (one, other))
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
