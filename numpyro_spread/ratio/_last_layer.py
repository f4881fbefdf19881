# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Refuse critics whose last layer bounds the logits."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from numpyro_spread.ratio.adapters import ConcatSites
from spread_core.messages import players

_BOUNDED = {
    "sigmoid", "expit", "logistic", "hard_sigmoid", "log_sigmoid", "softmax", "log_softmax", "tanh",
    "hard_tanh", "relu", "relu6", "softplus", "soft_sign",
}  # fmt: skip
_HOMES = ("jax", "jaxlib", "flax")
# What leaves the range of its values as it is.
_TRANSPARENT = {"Identity", "Dropout", "identity"}


def refuse_bounded_logits(critic: Any) -> None:
    """
    Refuse a critic that ends in a sigmoid or the like, as far as its layers say so.

    :param critic: the module, or a dict from site to module.
    :raises ValueError: naming the function.
    """
    for each in critic.values() if isinstance(critic, Mapping) else [critic]:
        last = _last(each)
        while isinstance(last, functools.partial):
            last = last.func
        name = getattr(last, "__name__", "")
        if name in _BOUNDED and getattr(last, "__module__", "").partition(".")[0] in _HOMES:
            raise ValueError(players.bounded_logits(name))


def _last(module: Any) -> Any:
    """The layer whose values are the module's, as far as that can be seen without calling it."""
    if type(module) is ConcatSites:
        return _last(module.net)
    home = type(module).__module__.partition(".")[0]
    kind = type(module).__name__ if home in ("flax", "equinox") else ""
    if kind == "Sequential":
        for part in reversed(module.layers):
            if getattr(part, "__name__", type(part).__name__) not in _TRANSPARENT:
                return _last(part)
    if kind == "Lambda":
        return module.fn
    if kind == "MLP" and home == "equinox":
        return module.final_activation
    return module
