# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Classify sample sites: implicit, latent, observed, computed."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Delta, Distribution, MaskedDistribution

from numpyro_spread import _parents
from numpyro_spread.distributions import ImplicitDistribution, Simulator
from numpyro_spread.noise.base import is_concrete
from spread_core.messages import contrasts, simulations

_WRAPPERS = ("Independent", "ExpandedDistribution", "MaskedDistribution")


def is_implicit(fn: Any) -> bool:
    """Whether ``fn`` is an ``ImplicitDistribution``, also inside wrappers and transforms."""
    return _is_around(fn, ImplicitDistribution)


def is_black_box(fn: Any) -> bool:
    """Whether ``fn`` is a ``Simulator``, also inside wrappers and transforms."""
    return _is_around(fn, Simulator)


def _is_around(fn: Any, kind: type) -> bool:
    while not isinstance(fn, kind):
        fn = getattr(fn, "base_dist", None)
        if not isinstance(fn, Distribution):
            return False
    return True


def innermost(fn: Any) -> ImplicitDistribution:
    """The ``ImplicitDistribution`` inside ``fn``."""
    while not isinstance(fn, ImplicitDistribution):
        fn = fn.base_dist
    return fn


def mask_of_implicit(site: str, fn: Any) -> Any:
    """
    The mask around an implicit distribution: None, False, or an array over its batch.

    :raises ValueError: if it masks parts of an event.
    """
    mask: Any = None
    outer = fn
    while not isinstance(fn, ImplicitDistribution):
        if isinstance(fn, MaskedDistribution) and _parents.mask_of(fn) is not True:
            if _parents.mask_of(fn) is False:
                return False
            if fn.event_dim != outer.event_dim:
                raise ValueError(contrasts.masked_event(site))
            here = np.broadcast_to if is_concrete(_parents.mask_of(fn)) else jnp.broadcast_to
            whole = here(_parents.mask_of(fn), outer.batch_shape)
            mask = whole if mask is None else mask & whole
        fn = fn.base_dist
    return mask


def is_bare_delta(fn: Any) -> bool:
    """
    Whether ``fn`` may be a ``Delta`` without the log-density of a transformation, also wrapped.

    One whose density is not known now, as in a scan or under jit, may be.
    """
    fn = inside_wrappers(fn)
    if not isinstance(fn, Delta):
        return False
    density = fn.log_density
    return not (is_concrete(density) and np.any(np.asarray(density)))


def inside_wrappers(fn: Any) -> Any:
    """A distribution without ``to_event``, ``expand`` and ``mask`` around it."""
    while isinstance(getattr(fn, "base_dist", None), Distribution):
        if type(fn).__name__ not in _WRAPPERS:
            break
        fn = fn.base_dist
    return fn


def plain_name(fn: Any) -> str:
    """The class of a distribution inside its wrappers."""
    return type(inside_wrappers(fn)).__name__


def batch_mask(site: str, fn: Distribution) -> Any:
    """
    Which elements of a batch count, as bools in its shape; None if nothing is masked.

    :raises ValueError: if parts of an event are masked.
    """
    mask, outer = None, fn
    while isinstance(fn, Distribution):
        own = _parents.mask_of(fn) if isinstance(fn, MaskedDistribution) else None
        if own is not None and own is not True:
            if fn.event_dim != outer.event_dim:
                raise ValueError(simulations.masked_within_event(site))
            own = jnp.broadcast_to(jnp.asarray(own, bool), outer.batch_shape)
            mask = own if mask is None else mask & own
        fn = getattr(fn, "base_dist", None)
    return mask


def mask_of_batch(fn: Distribution) -> Any:
    """Which elements of a batch count, where whole ones are masked."""
    mask, outer = jnp.ones(()), fn
    while isinstance(fn, Distribution):
        if isinstance(fn, MaskedDistribution) and fn.event_dim == outer.event_dim:
            mask = mask * _parents.mask_of(fn)
        fn = getattr(fn, "base_dist", None)
    return mask
