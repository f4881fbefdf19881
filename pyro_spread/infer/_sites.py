# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Classify sample sites: implicit, latent, observed, computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.subsample_messenger import _Subsample

from pyro_spread import _parents
from pyro_spread.distributions import ImplicitDistribution, Simulator
from pyro_spread.noise import SpreadNoise
from spread_core.messages import contrasts, simulations


def is_implicit(fn: Any) -> bool:
    """Whether ``fn`` is an ``ImplicitDistribution``, also inside wrappers and transforms."""
    return _is_around(fn, ImplicitDistribution)


def is_black_box(fn: Any) -> bool:
    """Whether ``fn`` is a ``Simulator``, also inside wrappers and transforms."""
    return _is_around(fn, Simulator)


def _is_around(fn: Any, kind: type) -> bool:
    while not isinstance(fn, kind):
        fn = getattr(fn, "base_dist", None)
        if not isinstance(fn, torch.distributions.Distribution):
            return False
    return True


def mask_of_implicit(site: str, fn: Any) -> Any:
    """
    The mask around an implicit distribution: None, a bool, or a tensor over its batch.

    :raises ValueError: if it masks parts of an event.
    """
    mask: Any = None
    outer = fn
    while isinstance(getattr(fn, "base_dist", None), torch.distributions.Distribution):
        if isinstance(fn, MaskedDistribution):
            if fn.event_dim != outer.event_dim and not isinstance(_parents.mask_of(fn), bool):
                raise ValueError(contrasts.masked_event(site))
            mask = combine_masks(mask, _parents.mask_of(fn))
        if isinstance(fn, ImplicitDistribution):
            break
        fn = fn.base_dist
    return mask


def batch_mask(name: str, site: Mapping[str, Any]) -> torch.Tensor | None:
    """
    Which elements of a site's batch count, as bools in its shape; None if nothing is masked.

    :raises ValueError: if parts of an event are masked.
    """
    fn, masks = site["fn"], [(site["mask"], site["fn"].event_dim)]
    while isinstance(getattr(fn, "base_dist", None), torch.distributions.Distribution):
        if isinstance(fn, MaskedDistribution):
            masks.append((_parents.mask_of(fn), fn.event_dim))
        fn = fn.base_dist
    result: torch.Tensor | None = None
    for mask, event_dim in masks:
        if mask is None or mask is True:
            continue
        if event_dim != site["fn"].event_dim:
            raise ValueError(simulations.masked_within_event(name))
        own = torch.as_tensor(mask, device=site["value"].device).bool()
        own = own.expand(site["fn"].batch_shape)
        result = own if result is None else result & own
    return result


def combine_masks(first: Any, second: Any) -> Any:
    """Two masks as one; None stands for everything."""
    if first is None or first is True:
        return second
    if second is None or second is True:
        return first
    if first is False or second is False:
        return False
    return first & second


def is_latent(site: Mapping[str, Any]) -> bool:
    """Whether a trace's node is a draw, neither data nor bookkeeping."""
    if site["type"] != "sample" or site["is_observed"]:
        return False
    return not isinstance(site["fn"], _Subsample) and not site["infer"].get("_deterministic")


def is_computed(site: Mapping[str, Any], value: Any) -> bool:
    """
    Whether ``value`` was computed by the model, though it looks like an observation.

    So do ``pyro.deterministic`` and what a reparametriser leaves where a latent was: a Delta that
    is masked out and stands at the value.

    :param value: what it observes.
    """
    if site["infer"].get("_deterministic"):
        return True
    fn, masked = site["fn"], False
    while isinstance(getattr(fn, "base_dist", None), torch.distributions.Distribution):
        masked = masked or getattr(fn, "_mask", None) is False
        fn = fn.base_dist
    if not masked or not isinstance(fn, Delta) or not isinstance(value, torch.Tensor):
        return False
    return fn.v is value or torch.equal(fn.v.broadcast_to(value.shape), value)


def plain_name(fn: Any) -> str:
    """The class of a distribution inside its wrappers."""
    while isinstance(getattr(fn, "base_dist", None), torch.distributions.Distribution):
        if type(fn).__name__ not in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
            break
        fn = fn.base_dist
    return type(fn).__name__


def lacks_gradient(fn: Any) -> bool:
    """Whether draws of ``fn`` should have a gradient in its parameters but are discrete."""
    if fn.has_rsample:
        return False
    if is_implicit(fn):  # its function is differentiable, and its noise may be as it likes
        while not isinstance(fn, ImplicitDistribution):
            fn = fn.base_dist
        fn = fn.base_dist
    return is_learned(fn)


def is_learned(fn: Any) -> bool:
    """Whether any parameter of a distribution or kernel, also of one inside it, has a gradient."""
    for value in vars(fn).values():
        tensors = value if isinstance(value, tuple) else (value,)  # several in a Simulator
        if any(isinstance(each, torch.Tensor) and each.requires_grad for each in tensors):
            return True
        if isinstance(value, torch.nn.Module) and any(p.requires_grad for p in value.parameters()):
            return True
        if isinstance(value, (torch.distributions.Distribution, SpreadNoise)) and is_learned(value):
            return True
    return False
