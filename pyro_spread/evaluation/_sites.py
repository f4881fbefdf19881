# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What evaluation asks of the sites of model and guide."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.distributions import Delta, ExpandedDistribution, Independent
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import _Subsample

from pyro_spread._typing import Site, Sites
from pyro_spread.infer._sites import is_black_box, is_computed, is_implicit
from pyro_spread.infer._two_sides import mask_at


def kept_elements(name: str, site: Site) -> NDArray:
    """Elements of a site that no mask leaves out, of shape batch + event."""
    shape = torch.broadcast_shapes(site["fn"].shape(), site["value"].shape)
    mask = mask_at(name, site, site["value"].expand(shape))
    return np.ones(shape, bool) if mask is None else mask.cpu().numpy()


def sample_sites(trace: Trace) -> Sites:
    """The sample sites of a trace that are latents or data, not bookkeeping."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not isinstance(site["fn"], _Subsample)
        # What it observes stands there also where it was drawn anew.
        and not is_computed(
            site, site["infer"].get("obs", site["value"] if site["is_observed"] else None)
        )
    }


def lacks_density(fn: Any, transformed: bool) -> bool:
    """Whether a distribution of a guide has no density; ``transformed`` allows a Delta."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    if is_implicit(fn) or is_black_box(fn):
        return True
    return isinstance(fn, Delta) and not transformed
