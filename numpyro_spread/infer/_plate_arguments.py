# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The model's arguments in the form a critic gets them: by name, one row per datum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_spread.infer._datum import frames_of
from spread_core.arguments import positional_names

_K = TypeVar("_K")


def named_arguments(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    sites: Mapping[str, Any],
    frames: Iterable[Any],
    batch_shape: tuple[int, ...],
) -> dict[str, Any]:
    """
    The arguments by name, those of full data reduced to what plates subsampled.

    :param model: the model, whose signature gives the names.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    """
    arguments = dict(zip(positional_names(model), args, strict=False)) | dict(kwargs)
    return subsampled(arguments, sites, frames, batch_shape)


def subsampled(
    arguments: Mapping[_K, Any],
    sites: Mapping[str, Any],
    frames: Iterable[Any],
    batch_shape: tuple[int, ...],
) -> dict[_K, Any]:
    """``arguments``, those of full data reduced to what plates subsampled."""
    arguments = dict(arguments)
    batch_ndim = len(batch_shape)
    for frame in sorted(frames, key=lambda frame: frame.dim):
        plate = sites.get(frame.name)
        if plate is None or not -batch_ndim <= frame.dim < 0:
            continue
        dim, indices = batch_ndim + frame.dim, plate["value"]
        full_size, taken = plate["args"][0], len(indices)
        if full_size == taken:
            continue
        for name, value in arguments.items():
            if not isinstance(value, jax.Array | np.ndarray) or value.ndim <= dim:
                continue
            if value.shape[dim] == full_size and value.shape[:dim] == batch_shape[:dim]:
                arguments[name] = jnp.take(jnp.asarray(value), indices, axis=dim)
    return arguments


def by_datum(
    arguments: Mapping[str, Any],
    sites: Mapping[str, Any],
    dims: Mapping[str, int | None],
    trace: Mapping[str, Any],
    batch_shape: tuple[int, ...],
) -> dict[str, Any]:
    """
    The arguments, reduced to what plates subsampled, with what counts the data in front.

    An argument may be laid out as a site is, over its plates, or over the data alone.
    """
    names = sorted(sites, key=lambda name: -len(sites[name]["fn"].batch_shape))
    placed = [(sites[name], dim) for name in names if (dim := dims[name]) is not None]
    arguments = dict(arguments)
    for name, value in arguments.items():
        if not isinstance(value, jax.Array | np.ndarray):
            continue
        for site, dim in placed:
            batch = site["fn"].batch_shape
            reduced = subsampled({name: value}, trace, frames_of(site), batch)[name]
            axis, own = len(batch) + dim, reduced.shape[: len(batch)]
            laid_out = len(own) == len(batch) and own[axis] == batch[axis]
            if laid_out and all(a in (1, b) for a, b in zip(own, batch, strict=True)):
                arguments[name] = jnp.moveaxis(jnp.asarray(reduced), axis, 0) if axis else reduced
                break
        else:
            outer = [frame._replace(dim=-1) for s in sites.values() for frame in frames_of(s)[:1]]
            arguments |= subsampled({name: value}, trace, outer[:1], batch_shape)
    return arguments
