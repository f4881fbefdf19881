# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Check that what a model observes is data, not its own draws or params."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.util import get_rng_state, set_rng_state

from pyro_spread import _parents
from pyro_spread._transaction import looking
from spread_core.messages import players
from spread_core.remembered import Remembered

# The observed sites of a model that were found to hold data.
_accepted: Remembered[frozenset[str]] = Remembered()
# A redraw of few values may be as it was.
_ATTEMPTS, _OF_FEW = 4, 100


def refuse_own_draws(
    model: Callable[..., Any],
    observed: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """
    Refuse observed values that depend on what the model draws, or on params.

    What is an argument, or a view of one, is data. All else is looked at once for every model: it
    runs twice with one random stream, the second time with other draws at its sites.

    :param model: the model.
    :param observed: its sites that are compared, of a run of the unconditioned model.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :raises ValueError: naming the site.
    """
    known = _accepted.get(model) or frozenset()
    given = {_storage(leaf) for leaf in _parents.tree_leaves((args, kwargs))} - {None}
    suspects = {
        name
        for name, site in observed.items()
        if name not in known and not _is_among(site["infer"]["obs"], given)
    }
    if not suspects:
        return
    # What requires a gradient without being an argument, does so for the sake of params.
    args, kwargs = _parents.tree_map(_constant, (args, dict(kwargs)))
    with looking(), poutine.block(), pyro.validation_enabled(False):
        state = get_rng_state()
        with _other_stream(), torch.enable_grad():
            first = _observations(model, suspects, args, kwargs)
        set_rng_state(state)
        with _other_stream(), torch.no_grad(), _Redrawn():
            second = _observations(model, suspects, args, kwargs)
    for name in sorted(suspects):
        if name not in first:
            continue
        if name not in second or not _equal(first[name], second[name]):
            raise ValueError(players.own_draw(name))
        if first[name].requires_grad:
            raise ValueError(players.learned_data(name))
    _accepted.keep(model, known | suspects)


class _Redrawn(Messenger):
    """Other draws at every site, for which the model's own random stream goes on as before."""

    def _pyro_post_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, _Subsample | Unit | Delta) or msg["is_observed"]:
            return
        with _other_stream():
            for _ in range(_OF_FEW if getattr(fn, "has_enumerate_support", False) else _ATTEMPTS):
                value = fn(*msg["args"], **msg["kwargs"])
                if not _equal(value, msg["value"]):
                    break
        msg["value"] = value


@contextmanager
def _other_stream() -> Iterator[None]:
    """Use a separate random stream inside the context."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield


def _observations(
    model: Callable[..., Any], sites: Collection[str], args: Any, kwargs: Any
) -> dict[str, torch.Tensor]:
    nodes = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs).nodes
    found = {name: nodes[name] for name in sites if name in nodes}
    return {
        name: torch.as_tensor(site["infer"]["obs"])
        for name, site in found.items()
        if site["infer"].get("was_observed")
    }


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _constant(leaf: Any) -> Any:
    is_given = isinstance(leaf, torch.Tensor) and not isinstance(leaf, torch.nn.Parameter)
    return leaf.detach() if is_given and leaf.requires_grad else leaf


def _is_among(value: Any, given: Collection[int | None]) -> bool:
    # A param whose initial value is an argument may share its memory.
    if isinstance(value, torch.Tensor) and value.requires_grad:
        return False
    return _storage(value) in given


def _storage(value: Any) -> int | None:
    """Where a tensor's numbers lie; None if it is none, or a param."""
    if not isinstance(value, torch.Tensor) or isinstance(value, torch.nn.Parameter):
        return None
    return value.untyped_storage().data_ptr()
