# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The model's arguments in the form a critic gets them: by name, one row per datum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from pyro_spread._recording import values_known
from pyro_spread.infer._datum import frames_of


def subsampled(
    arguments: Mapping[str, Any],
    frames: Iterable[Any],
    indices: Mapping[str, torch.Tensor],
    batch_shape: torch.Size,
) -> dict[str, Any]:
    """
    The arguments, those of full data reduced to what plates subsampled.

    :param indices: dict from plate to the indices that it took.
    """
    arguments = dict(arguments)
    batch_ndim = len(batch_shape)
    for frame in sorted((f for f in frames if f.vectorized), key=lambda f: f.dim):
        if frame.name not in indices or not -batch_ndim <= frame.dim < 0:
            continue
        dim, taken = batch_ndim + frame.dim, indices[frame.name]
        if not is_index(taken):
            continue
        everything = torch.arange(frame.full_size, device=taken.device)
        if values_known() and torch.equal(taken, everything):
            continue
        for name, value in arguments.items():
            if not isinstance(value, torch.Tensor | np.ndarray) or value.ndim <= dim:
                continue
            if value.shape[dim] == frame.full_size and value.shape[:dim] == batch_shape[:dim]:
                value = torch.as_tensor(value)
                arguments[name] = value.index_select(dim, taken.to(value.device))
    return arguments


def by_datum(
    arguments: Mapping[str, Any],
    sites: Mapping[str, Any],
    dims: Mapping[str, int | None],
    indices: Mapping[str, torch.Tensor],
    batch_shape: torch.Size,
) -> dict[str, Any]:
    """
    The arguments, reduced to what plates subsampled, with what counts the data in front.

    An argument may be laid out as a site is, over its plates, or over the data alone.

    :param indices: dict from plate to the indices that it took.
    """
    names = sorted(sites, key=lambda name: -len(sites[name]["fn"].batch_shape))
    placed = [(sites[name], dim) for name in names if (dim := dims[name]) is not None]
    arguments = dict(arguments)
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor | np.ndarray):
            continue
        for site, dim in placed:
            batch = site["fn"].batch_shape
            reduced = subsampled({name: value}, frames_of(site), indices, batch)[name]
            axis, own = len(batch) + dim, reduced.shape[: len(batch)]
            laid_out = len(own) == len(batch) and own[axis] == batch[axis]
            if laid_out and all(a in (1, b) for a, b in zip(own, batch, strict=True)):
                arguments[name] = torch.as_tensor(reduced).movedim(axis, 0) if axis else reduced
                break
        else:
            outer = [frame._replace(dim=-1) for s in sites.values() for frame in frames_of(s)[:1]]
            arguments |= subsampled({name: value}, outer[:1], indices, batch_shape)
    return arguments


def is_index(subsample: Any) -> bool:
    """
    Whether a plate's subsample are indices; it may be the data themselves, which count.

    :param subsample: what the plate was given or drew.
    """
    return (
        isinstance(subsample, torch.Tensor)
        and subsample.dim() == 1
        and subsample.dtype in (torch.int32, torch.int64)
    )


def expand_batch(value: Any, batch_shape: torch.Size, full_shape: torch.Size) -> Any:
    """
    ``value`` for more draws per datum, if it is an array over the data.

    :param value: an argument; arrays of shape ``batch_shape`` + rest are expanded.
    :param batch_shape: shape of the plates of the data.
    :param full_shape: the shape that takes its place, which ends in it.
    """
    if not isinstance(value, torch.Tensor | np.ndarray) or batch_shape == full_shape:
        return value
    if tuple(value.shape[: len(batch_shape)]) != tuple(batch_shape):
        return value
    value = torch.as_tensor(value)
    return value.expand(*full_shape, *value.shape[len(batch_shape) :])
