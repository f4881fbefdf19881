# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What evaluation asks of the sites of model and guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro.distributions import Delta, ExpandedDistribution, Independent, MaskedDistribution
from numpyro.handlers import seed, substitute, trace

from numpyro_spread._typing import Args, Kwargs, Params, RngKey, Site, Sites
from numpyro_spread.infer._scan import Inside
from numpyro_spread.infer._sites import is_black_box, is_implicit
from numpyro_spread.infer._two_sides import mask_at


def kept_elements(name: str, site: Site) -> jax.Array:
    """Elements of a site that no mask leaves out, of shape batch + event."""
    shape = jnp.broadcast_shapes(site["fn"].shape(), jnp.shape(site["value"]))
    mask = mask_at(name, site, shape)
    return jnp.ones(shape, bool) if mask is None else mask


def trace_of(
    rng_key: RngKey, params: Params, fn: Callable[..., Any], args: Args, kwargs: Kwargs
) -> dict[str, Site]:
    """Run a model or guide; all of its sites."""
    bound = substitute(Inside(fn), data=dict(params))
    return trace(seed(bound, rng_key)).get_trace(*args, **kwargs)


def sample_sites(sites: Sites) -> Sites:
    """The sample sites of a trace: latents and data, not bookkeeping."""
    return {name: site for name, site in sites.items() if site["type"] == "sample"}


def lacks_density(fn: Any, transformed: bool) -> bool:
    """Whether a distribution of a guide has no density; ``transformed`` allows a Delta."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    if is_implicit(fn) or is_black_box(fn):
        return True
    return isinstance(fn, Delta) and not transformed


def numpy_seed(rng_key: RngKey) -> int:
    """A seed for NumPy's generator."""
    return int(random.randint(rng_key, (), 0, 2**31 - 1))
