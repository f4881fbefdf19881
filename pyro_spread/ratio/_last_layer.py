# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Refuse critics whose last layer bounds the logits."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyro_spread.ratio.adapters import ConcatSites
from spread_core.messages import players

_BOUNDED = (
    nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin,
    nn.Tanh, nn.Hardtanh, nn.ReLU, nn.Softplus, nn.Softsign,
)  # fmt: skip
# What leaves the range of its values as it is.
_TRANSPARENT = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout)


def refuse_bounded_logits(critic: Any) -> None:
    """
    Refuse a critic that ends in a sigmoid or the like, as far as its layers say so.

    :param critic: the module, or a dict from site to module.
    :raises ValueError: naming the layer.
    """
    for each in critic.values() if isinstance(critic, nn.ModuleDict) else [critic]:
        last = _last(each)
        if isinstance(last, _BOUNDED):
            raise ValueError(players.bounded_logits(type(last).__name__))


def _last(module: Any) -> Any:
    """The layer whose values are the module's, as far as that can be seen without calling it."""
    compiled = getattr(module, "_orig_mod", None)  # of torch.compile
    if compiled is not None:
        return _last(compiled)
    if type(module) is ConcatSites:
        return _last(module.net)
    if type(module) is nn.Sequential:
        for part in reversed(module):
            if not isinstance(part, _TRANSPARENT):
                return _last(part)
    return module
