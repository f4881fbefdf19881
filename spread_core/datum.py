# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What counts as a datum: an element of the outermost plate, with its inner plates and events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from spread_core.math._arrays import array_type
from spread_core.messages import players

Shape = tuple[int, ...]
# The plates of a site, outermost first: each has a name and a dim, which is None for a loop.
Frames = Sequence[Any]


def are_whole(frames: Mapping[str, Frames]) -> bool:
    """
    Whether all sites stand in one plate or none does: else draws outside make all data one datum.

    :param frames: dict from site to its plates.
    """
    return len({_name(plates) for plates in frames.values()}) == 1


def is_one(frames: Mapping[str, Frames], shapes: Mapping[str, Shape]) -> bool:
    """
    Whether a run of a whole program is one datum: for draws outside of the plate of others, and
    without plates where no batch dimension is common to all sites.

    :param frames: dict from site to its plates.
    :param shapes: dict from site to its batch shape.
    """
    if not are_whole(frames):
        return True
    sizes = {tuple(size for size in shape if size != 1) for shape in shapes.values()}
    return not any(frames.values()) and (len(sizes) > 1 or len(next(iter(sizes))) != 1)


def data_dims(frames: Mapping[str, Frames], shapes: Mapping[str, Shape]) -> dict[str, int | None]:
    """
    The batch dimension of every site that counts the data, from the right; None for a single datum.

    It is that of the outermost plate, which all sites must share. Without plates it is the only
    batch dimension of more than one element.

    :param frames: dict from site to its plates: of those that are compared.
    :param shapes: dict from site to its batch shape.
    :raises ValueError: if that cannot be decided, naming the site and what to do.
    """
    for name, plates in frames.items():
        if plates and plates[0].dim is None:
            raise ValueError(
                f"site '{name}': its outermost plate '{plates[0].name}' counts the data and is "
                "sequential, so that every turn of the loop would be another datum. Write it "
                f"vectorised: with pyro.plate('{plates[0].name}', size): ..."
            )
        dims = {plate.dim for plate in plates}
        shape = shapes[name]
        loose = [d for d in range(-len(shape), 0) if shape[d] != 1 and d not in dims]
        if len(loose) > (0 if plates else 1):
            names = [plate.name for plate in plates if plate.dim is not None]
            raise ValueError(players.undecided_batch(name, shape, names))
        if _is_stack(plates):
            raise ValueError(
                f"site '{name}': plate_stack('{plates[0].name.removesuffix('_0')}', ...) does "
                "not say which of its plates counts the data: the first that is entered is "
                "the rightmost one. Enter the plate over the data by itself, before the "
                "others."
            )
    if any(frames.values()):
        found = {name: plates[0].dim if plates else None for name, plates in frames.items()}
    elif all(shapes.values()):
        found = {
            name: next((d for d in range(-len(shape), 0) if shape[d] != 1), -1)
            for name, shape in shapes.items()
        }
    else:  # one site has no batch: what the others have is part of one datum
        found = dict.fromkeys(frames)
    counts = {
        name: (_name(frames[name]), None if dim is None else shapes[name][dim])
        for name, dim in found.items()
    }
    first = next(iter(counts))
    for name, count in counts.items():
        if count != counts[first]:
            raise ValueError(
                players.batch_mismatch(
                    first, shapes[first], _name(frames[first]), name, shapes[name], count[0]
                )
            )
    return found


def full_shape(value: Shape, batch: Shape, event: Shape, dim: int | None) -> Shape | None:
    """
    The shape of a value broadcast to its site's batch, all but the number of data; None if it has
    no place there.

    :param value: shape of the value.
    :param batch: batch shape of the site.
    :param event: event shape of the site.
    :param dim: of the data, from :func:`data_dims`.
    """
    depth = len(value) - len(event)
    if depth < -(dim or 0) or value[depth:] != event:
        return None
    own = value[:depth]
    target = list(batch)
    if dim is not None:
        target[dim] = own[dim]
    missing = len(own) - len(batch)
    aligned = [*[1] * missing, *target], [*[1] * -missing, *own]
    fits = all(b in (1, a) for a, b in zip(*aligned, strict=True))
    return (*target, *event) if fits else None


def in_batch(value: Any, site: Mapping[str, Any], dim: int | None) -> Any:
    """
    ``value`` in the batch shape of its site, all but the number of data; None if it does not fit.

    :param value: of the site, which may broadcast over inner plates.
    :param site: of a trace.
    :param dim: of the data, from :func:`data_dims`.
    """
    own, fn = tuple(np.shape(value)), site["fn"]
    shape = full_shape(own, tuple(fn.batch_shape), tuple(fn.event_shape), dim)
    if shape is None or shape == own:
        return None if shape is None else value
    xp = _functions_for(value)
    return xp.broadcast_to(xp.reshape(value, own[max(0, len(own) - len(shape)) :]), shape)


def masks_parts(mask: Sequence[int], event_dims: int) -> bool:
    """
    Whether a mask may leave out elements of an event and keep others.

    :param mask: its shape.
    :param event_dims: number of its rightmost dims that are event dims of the site.
    """
    return any(size != 1 for size in mask[max(0, len(mask) - event_dims) :])


def data_first(value: Any, event_dim: int, dim: int | None) -> Any:
    """
    ``value`` with the dimension that counts the data in front of the rest of the datum.

    :param value: of shape batch + event.
    :param event_dim: number of event dimensions.
    :param dim: of the data, from :func:`data_dims`.
    """
    if dim is None or len(np.shape(value)) == event_dim - dim:
        return value
    return _functions_for(value).moveaxis(value, dim - event_dim, 0)


def _functions_for(value: Any) -> Any:
    # NumPy's arrays stay, and stay known inside a compiled step; so do plain numbers.
    return array_namespace(value) if array_type(value) else np


def check_scale(name: str, scale: Shape, value: Shape, batch: Shape, dim: int | None) -> None:
    """
    Refuse a scale that is not one number for every datum.

    :param name: of the site.
    :param scale: shape of its scale.
    :param value: shape of its value.
    :param batch: batch shape of the site, with the number of data that its value has.
    :param dim: of the data, from :func:`data_dims`.
    :raises ValueError: naming the site.
    """
    if len(scale) > len(batch):
        raise ValueError(players.mask_misfit(name, scale, value))
    for position, size in enumerate(scale, start=-len(scale)):
        if size not in (1, batch[position]):
            raise ValueError(players.mask_misfit(name, scale, value))
        if size != 1 and position != dim:
            raise ValueError(
                f"site '{name}': a scale of shape {tuple(scale)} differs within a datum, but a "
                "datum is compared as one and has one weight. Give one number per datum, "
                "along the outermost plate, or leave elements out with a mask."
            )


def _is_stack(plates: Frames) -> bool:
    """Whether ``plate_stack`` made the outermost plates: it enters the rightmost one first."""
    if len(plates) < 2 or not plates[0].name.endswith("_0"):
        return False
    neighbours = plates[1].dim is not None and plates[1].dim == plates[0].dim - 1
    return neighbours and plates[1].name == plates[0].name.removesuffix("0") + "1"


def _name(plates: Frames) -> str | None:
    return plates[0].name if plates else None
