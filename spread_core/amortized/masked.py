# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Latents that are masked have nothing to teach: others of their run stand in for them.

A masked latent follows its prior whatever the data are. Trained on, it would pull the conditionals
of the others towards the prior, as a regression sees both alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from spread_core.amortized.layout import Group


def kept_latents(group: Group, masks: Mapping[str, np.ndarray], depth: int) -> np.ndarray | None:
    """
    Which elements of a group count, of shape (simulations,) + plates; None for all.

    :param group: of latents.
    :param masks: of a table, by site.
    :param depth: number of dims for plates.
    """
    found = None
    for variable in group.variables:
        mask = masks.get(variable.name)
        if mask is not None:
            plain = dataclasses.replace(variable, event_shape=())
            batch = mask.reshape(*mask.shape[: 1 + len(variable.batch_shape)], -1).all(-1)
            own = plain.join(batch, depth, 1).all(-1)
            found = own if found is None else found & own
    return found


def stand_ins(parts: tuple[Any, ...], kept: np.ndarray) -> tuple[Any, ...]:
    """
    Rows in which elements that count stand in for those that do not, in turn.

    :param parts: arrays of shape (simulations,) + plates + (numbers,), the latents first; of others
        plates may be of size 1, where all elements see the same.
    :param kept: which elements count, of shape (simulations,) + plates. Where none does all stay.
    """
    shape = np.shape(parts[0])[:-1]
    kept = np.broadcast_to(kept, shape)
    if kept.all():
        return parts
    flat = kept.reshape(len(kept), -1)
    places = np.arange(flat.shape[1])
    first = np.argsort(~flat, axis=1, kind="stable")
    count = np.maximum(flat.sum(1, keepdims=True), 1)
    others = np.take_along_axis(first, places % count, 1)
    chosen = np.where(flat | ~flat.any(1, keepdims=True), places, others)[..., None]

    def choose(part: Any) -> Any:
        if math.prod(np.shape(part)[1:-1]) == 1:
            return part
        wide = np.broadcast_to(np.asarray(part), (*shape, part.shape[-1]))
        rows = wide.reshape(*flat.shape, -1)
        return np.take_along_axis(rows, chosen, 1).reshape(wide.shape)

    return tuple(map(choose, parts))
