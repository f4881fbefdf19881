# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
By what is judged which params to keep: number by number, or by a member's whole loss.

Numbers whose nets share a learned embedding cannot each keep the embedding of another epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from spread_core.amortized import training
from spread_core.math._arrays import Array, as_bool

_ALL = "all"


def judged(losses: Mapping[str, np.ndarray], whole: bool) -> dict[str, np.ndarray]:
    """
    Losses, or gains, of what is kept or dropped together.

    :param losses: of shape (M, D) or (M, D, rows) by group.
    :param whole: whether all numbers of a member are; the key of their sum, (M, 1) or (M, 1, rows),
        is none of a group.
    """
    if not whole:
        return dict(losses)
    return {_ALL: sum(loss.sum(1, keepdims=True) for loss in losses.values())}


def worth_it(
    gains: Mapping[str, np.ndarray], whole: bool, flows: Mapping[str, Mapping[str, int]]
) -> dict[str, np.ndarray]:
    """
    Which nets gain at least one standard error over where they started.

    :param gains: of held-out rows, of shape (M, D, rows) by group.
    :param whole: whether a member's params are taken together.
    :param flows: the first number of a flow's site, by group and name of the param.
    """
    return training.worth_it(judged(gains, whole), {_ALL: {}} if whole else flows)


def kept(
    better: Mapping[str, np.ndarray],
    new: Mapping[str, Any],
    old: Mapping[str, Any],
    whole: bool,
    flows: Mapping[str, Mapping[str, int]],
) -> Any:
    """
    Params, the new ones where they are better.

    :param better: bools of shape (M, D) by group; or those of :func:`judged`.
    :param new: dicts of params of shape (M, ...) by group.
    :param old: alike.
    :param whole: whether a member's params are taken together.
    :param flows: the first number of a flow's site, by group and name of the param.
    """
    if not whole:
        return training.merged(better, new, old, flows)
    members = better[_ALL][:, 0]

    def choose(a: Array, b: Array) -> Array:
        wide = members.reshape(-1, *[1] * (len(a.shape) - 1))
        return array_namespace(a).where(as_bool(wide, a), a, b)

    return {
        key: {name: choose(leaf, old[key][name]) for name, leaf in own.items()}
        for key, own in new.items()
    }
