# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Refuse a guide like ``Delta(m + s * eps)``: the entropy of its draws would be left out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta

from pyro_spread._snapshot import NotSettledError, is_settled
from pyro_spread._transaction import looking
from pyro_spread.infer._sites import is_latent
from spread_core.messages import contrasts
from spread_core.remembered import Remembered

# The sites of a guide that were checked; None stands for all.
_accepted: Remembered[set[frozenset[str] | None]] = Remembered()


def refuse_random_deltas(
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    among: Collection[str] | None = None,
    settled: bool = False,
) -> bool:
    """
    Refuse a guide with a ``Delta`` at a function of random noise and of params.

    A Delta of params alone is a point estimate. One of draws alone, with no params in between, is a
    change of variables whose density the draws carry, as in Pyro's autoguides. Each guide is
    checked once.

    :param guide: the guide.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :param among: the sites whose density counts; None stands for all.
    :param settled: whether to skip a guide that its first call sets up with random numbers, which
        this check would take back.
    :return: whether the guide has been checked.
    :raises ValueError: naming the site.
    """
    key = None if among is None else frozenset(among)
    seen = _accepted.get(guide) or set()
    if key in seen:
        return True
    if settled and not is_settled(guide):
        return False
    try:
        with looking(settled), poutine.block(), torch.enable_grad():
            _check(guide, args, kwargs, among)
    except NotSettledError:
        return False
    _accepted.keep(guide, seen | {key})
    return True


def _check(
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    among: Collection[str] | None,
) -> None:
    first = poutine.trace(guide).get_trace(*args, **kwargs)
    deltas = [n for n, s in first.nodes.items() if _is_bare_delta(s)]
    if not deltas:
        return
    # Once more at the same draws, which are leaves now, and with other random numbers elsewhere.
    leaves = {}
    for name, site in first.nodes.items():
        if is_latent(site) and name not in deltas and site["value"].is_floating_point():
            site["value"] = leaves[name] = site["value"].detach().requires_grad_()
    for name in deltas:
        first.remove_node(name)
    again = poutine.trace(poutine.replay(guide, trace=first)).get_trace(*args, **kwargs)
    own = set()
    for name, site in again.nodes.items():
        if name not in deltas and is_latent(site) and isinstance(site["fn"], Delta):
            own |= _leaves_of(site["fn"].v)
    # Draws that are a latent in other coordinates, whose density is counted: what follows from them
    # is a point given that latent, as the "delta" conditionals of AutoStructured are.
    noise = {leaf for leaf in leaves.values() if leaf not in own}
    hidden = poutine.trace(poutine.replay(guide, trace=first)).get_trace(*args, **kwargs)
    for name in deltas:
        point = again.nodes[name]["fn"].v
        moves = not torch.equal(point, hidden.nodes[name]["fn"].v)
        reached = _leaves_of(point)
        if among is not None and name not in among:
            continue
        random = moves or bool(noise & reached)
        if random and reached - set(leaves.values()):
            raise ValueError(contrasts.random_delta(name))


def _is_bare_delta(site: Any) -> bool:
    if not is_latent(site) or not isinstance(site["fn"], Delta):
        return False
    density = torch.as_tensor(site["fn"].log_density)
    return not density.requires_grad and not bool(density.any())


def _leaves_of(value: torch.Tensor) -> set[torch.Tensor]:
    """The tensors with a gradient that ``value`` was computed from."""
    if value.grad_fn is None:
        return {value} if value.requires_grad else set()
    leaves, seen = set(), set()
    left: list[Any] = [value.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        left += [parent for parent, _ in node.next_functions]
    return leaves
