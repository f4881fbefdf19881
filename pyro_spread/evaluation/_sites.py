# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What evaluation asks of the sites of model and guide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from pyro.poutine.subsample_messenger import _Subsample

from pyro_spread.infer._sites import is_computed
from pyro_spread.infer._two_sides import mask_at


def kept_elements(name: str, site: Mapping[str, Any]) -> np.ndarray:
    """Elements of a site that no mask leaves out, of shape batch + event."""
    shape = torch.broadcast_shapes(site["fn"].shape(), site["value"].shape)
    mask = mask_at(name, site, site["value"].expand(shape))
    return np.ones(shape, bool) if mask is None else mask.cpu().numpy()


def sample_sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a trace that are latents or data, not bookkeeping."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not isinstance(site["fn"], _Subsample)
        and not is_computed(site, observation_of(site))
    }


def observation_of(site: Any) -> Any:
    """What a site observes, also where it was drawn anew; None for a latent."""
    return site["infer"].get("obs", site["value"] if site["is_observed"] else None)


def shared_dims(sites: Iterable[Any]) -> list[int]:
    """Dimensions of the plates around all sites, along which data come apart."""
    plates = [
        {(f.name, f.dim, f.size) for f in site["cond_indep_stack"] if f.vectorized}
        for site in sites
    ]
    return sorted(dim for _, dim, _ in set.intersection(*plates))


def to_numpy(value: torch.Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()
