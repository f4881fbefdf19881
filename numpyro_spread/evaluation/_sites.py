# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What evaluation asks of the sites of model and guide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro.handlers import seed, substitute, trace

from numpyro_spread.infer._scan import Inside
from numpyro_spread.infer._two_sides import mask_at


def kept_elements(name: str, site: Mapping[str, Any]) -> jax.Array:
    """Elements of a site that no mask leaves out, of shape batch + event."""
    shape = jnp.broadcast_shapes(site["fn"].shape(), jnp.shape(site["value"]))
    mask = mask_at(name, site, shape)
    return jnp.ones(shape, bool) if mask is None else mask


def trace_of(
    rng_key: jax.Array,
    params: Mapping[str, Any],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    bound = substitute(Inside(fn), data=dict(params))
    return trace(seed(bound, rng_key)).get_trace(*args, **kwargs)


def sample_sites(sites: Mapping[str, Any]) -> dict[str, Any]:
    """The sample sites of a trace: latents and data, not bookkeeping."""
    return {name: site for name, site in sites.items() if site["type"] == "sample"}


def shared_dims(sites: Iterable[Any]) -> list[int]:
    """Dimensions of the plates around all sites, along which data come apart."""
    plates = [{(f.name, f.dim, f.size) for f in site["cond_indep_stack"]} for site in sites]
    return sorted(dim for _, dim, _ in set.intersection(*plates))


def numpy_seed(rng_key: jax.Array) -> int:
    return int(random.randint(rng_key, (), 0, 2**31 - 1))
