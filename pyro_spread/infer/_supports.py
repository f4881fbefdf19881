# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Find the model's support of the sites that the guide draws without a density."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints

from pyro_spread._transaction import looking
from pyro_spread.noise import SpreadNoise
from spread_core.noise.implicit_sites import fixed_support
from spread_core.patterns import is_pattern, key_of, matches
from spread_core.remembered import Remembered
from spread_core.typing import Guide, Model

#: Constraints by site; None stands for all reals, as at sites that the model does not have.
Supports = Mapping[str, Any]
# They are looked up once for a model, in one more run of it and the guide.
_known: Remembered[dict[str, Any]] = Remembered()


class MovedSupportError(ValueError):
    """The support of a site is not what it was."""


def find_supports(
    model: Model,
    guide: Guide,
    kernels: Mapping[str, SpreadNoise],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """
    The supports in the model of all sites that have kernels.

    :raises ValueError: if the bounds of one differ between elements of a batch, or are learned.
    """
    known = _known.get(model)
    other_sites = any(is_pattern(key) for key in kernels)  # a pattern may stand for, in each call
    if known is None or other_sites or not kernels.keys() <= known.keys():
        # Draws outside a support are refused later, and in better words than by the sites whose
        # parameters they are.
        with looking(), poutine.block(), pyro.validation_enabled(False):
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        sites = {s for key in kernels for s in (key, *guide_trace.nodes) if matches(key, s)}
        known = {site: support_in(trace, site) for site in sites}
        _known.keep(model, known)
    return {site: known[site] for site in known if key_of(kernels, site) is not None}


def forget_supports(model: Model) -> None:
    """Look again when the model runs next."""
    _known.forget(model)


def support_in(trace: Any, site: str) -> Any:
    """The support of ``site`` in a trace of the model."""
    node = trace.nodes.get(site)
    if node is None or node["type"] != "sample":
        return None
    fn = node["fn"]
    return fixed_support(site, fn.support, len(fn.event_shape), constraints, _bound)


def _bound(value: Any) -> tuple[torch.Tensor, bool] | None:
    return (value, not value.requires_grad) if isinstance(value, torch.Tensor) else None


def same_support(first: Any, second: Any) -> bool:
    """Whether two supports, or attributes of them, are the same."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, constraints.Constraint) and type(first) is type(second):
        return all(
            same_support(value, vars(second).get(name)) for name, value in vars(first).items()
        )
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        pairs = zip(first, second, strict=False)
        return len(first) == len(second) and all(same_support(a, b) for a, b in pairs)
    return type(first) is type(second) and bool(first == second)
