# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Bring the dimension that counts the data in front of the rest of a datum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from spread_core import datum
from spread_core.datum import data_first


def frames_of(site: Mapping[str, Any]) -> tuple[Any, ...]:
    """The plates of a site, outermost first."""
    return tuple(site["cond_indep_stack"])


def data_plate(site: Mapping[str, Any]) -> str | None:
    """The name of a site's outermost plate, which counts the data, or None."""
    return next((frame.name for frame in frames_of(site)), None)


def data_dims(sites: Mapping[str, Any]) -> dict[str, int | None]:
    """
    The batch dimension of every site that counts the data, from the right; None for a single datum.

    :raises ValueError: if that cannot be decided, naming the site and what to do.
    """
    shapes = {name: tuple(site["fn"].batch_shape) for name, site in sites.items()}
    return datum.data_dims({name: frames_of(site) for name, site in sites.items()}, shapes)


def is_one(sites: Mapping[str, Any]) -> bool:
    """Whether a run of the whole program is one datum: see :func:`spread_core.datum.is_one`."""
    shapes = {name: tuple(site["fn"].batch_shape) for name, site in sites.items()}
    return datum.is_one({name: frames_of(site) for name, site in sites.items()}, shapes)


def datum_rows(value: torch.Tensor, site: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
    """
    ``value`` laid out with a row for every element of the outermost plate, and its event dims then.

    :param site: of a trace; without such a plate the value stays.
    """
    event_dim, frame = site["fn"].event_dim, next(iter(frames_of(site)), None)
    if frame is None or frame.dim is None:
        return value, event_dim
    value = data_first(value, event_dim, frame.dim)
    parts = [size for size in value.shape[1 : value.dim() - event_dim] if size != 1]
    shape = (len(value), *parts, *value.shape[value.dim() - event_dim :])
    return value.reshape(shape), len(shape) - 1


def weight_of_data(
    name: str, site: Mapping[str, Any], dim: int | None, batch_shape: torch.Size
) -> torch.Tensor:
    """
    The scale of a site, one for each datum.

    :raises ValueError: if it does not fit, or differs within a datum.
    """
    scale, batch = torch.as_tensor(site["scale"]), list(site["fn"].batch_shape)
    if dim is not None:
        batch[dim] = batch_shape[0]
    datum.check_scale(name, tuple(scale.shape), tuple(site["value"].shape), tuple(batch), dim)
    return scale.reshape(-1).expand(batch_shape or (1,)).reshape(batch_shape)


def parts_left_out(site: Mapping[str, Any], one: bool = False) -> float:
    """
    The factor that inner plates which subsample put into the scale of a site.

    A datum with fewer parts still is one datum.

    :param one: whether the outermost plate counts parts too, since the whole run is one datum.
    """
    inner = [frame for frame in frames_of(site)[0 if one else 1 :] if frame.vectorized]
    return math.prod(float(frame.full_size or frame.size) / float(frame.size) for frame in inner)
