# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Latent sites to unconstrained vectors and back; features for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.utils import helpful_support_errors
from torch.distributions import biject_to

from spread_core.latents import Latent, LatentGroup, Plate
from spread_core.messages import autoguide


def latent_of(name: str, site: Any) -> Latent:
    """Names, shapes and plates of a sample site."""
    with helpful_support_errors(site), torch.no_grad():
        unconstrained = biject_to(site["fn"].support).inv(site["value"])
    plates = frozenset(
        Plate(frame.name, frame.dim, frame.size, frame.full_size or frame.size)
        for frame in site["cond_indep_stack"]
    )
    batch_dims = site["value"].dim() - site["fn"].event_dim
    shape = unconstrained.shape
    return Latent(name, tuple(shape[:batch_dims]), tuple(shape[batch_dims:]), plates)


def unconstrain(
    group: LatentGroup, supports: Mapping[str, Any], values: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Values of the group's latents as vectors of shape batch + (size,) in unconstrained space."""
    parts = group.join({name: biject_to(supports[name]).inv(values[name]) for name in group.names})
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, -1) for part in parts], -1)


def constrain(
    support: Any, event_dim: int, unconstrained: torch.Tensor, scored: bool
) -> dist.Delta:
    """The latent as a function of its unconstrained value, with the density of that change."""
    transform = biject_to(support)
    value = transform(unconstrained)
    log_density: Any = 0.0
    if scored:
        log_density = -transform.log_abs_det_jacobian(unconstrained, value)
        log_density = sum_rightmost(log_density, log_density.dim() - value.dim() + event_dim)
    return dist.Delta(value, log_density=log_density, event_dim=event_dim)


def select_features(
    group: LatentGroup,
    features: torch.Tensor | None,
    plates: Mapping[str, Any],
    indices: Mapping[str, torch.Tensor],
) -> torch.Tensor | None:
    """The features of the data in the subsample."""
    if features is None:
        return None
    sizes = {p.name: (plates[p.name].subsample_size, plates[p.name].size) for p in group.plates}
    if not group.features_fit(features.shape, sizes):
        refuse_features(group, features, {name: size for name, (size, _) in sizes.items()}, {})
    for plate in group.plates:
        if features.shape[plate.dim - 1] != plates[plate.name].subsample_size:
            chosen = indices[plate.name].to(features.device)
            features = features.index_select(plate.dim - 1, chosen)
    return features


def refuse_features(
    group: LatentGroup, features: torch.Tensor, sizes: Mapping[str, int], output: Any
) -> None:
    """
    :raises ValueError: always, with the shape of the features and that of the plates.
    """
    batch, dict_form = group.batch_shape(sizes), isinstance(output, Mapping)
    message = autoguide.encoder_features_shape(group.key, features.shape, batch, dict_form)
    raise ValueError(message)
