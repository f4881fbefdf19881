# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel round x + g(x), where g is a net that moves no two points onto one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pyro_spread.noise.base import SpreadNoise
from spread_core.messages import learned as messages
from spread_core.noise.residual import GELU, IDENTITY, SIGMOID, SILU, Residual

_WANTED = "a torch.nn.Sequential of torch.nn.Linear layers and activations"
_SLOPES: dict[type[nn.Module], Callable[[Any], float]] = {
    nn.ELU: lambda layer: max(IDENTITY, abs(layer.alpha)),
    nn.GELU: lambda layer: GELU,
    nn.Identity: lambda layer: IDENTITY,
    nn.LeakyReLU: lambda layer: max(IDENTITY, abs(layer.negative_slope)),
    nn.ReLU: lambda layer: IDENTITY,
    nn.SiLU: lambda layer: SILU,
    nn.Sigmoid: lambda layer: SIGMOID,
    nn.Softplus: lambda layer: IDENTITY,
    nn.Softsign: lambda layer: IDENTITY,
    nn.Tanh: lambda layer: IDENTITY,
}


@dataclass(frozen=True, eq=False, repr=False)
class _ResidualNoise(Residual, SpreadNoise):
    r"""
    Noise round f(x) = x + g(x), with g of a Lipschitz constant below one, so that f is injective.

    ``learned(..., mean=net)`` makes it.
    """

    net: Any
    noise: SpreadNoise


def round_mean(net: Any, noise: SpreadNoise) -> SpreadNoise:
    """
    A kernel round x + g(x).

    :param net: g, with its weights.
    :param noise: the kernel.
    """
    return _ResidualNoise(net, noise)


def chain_of(net: Any) -> nn.Sequential:
    """
    A net as a chain of layers.

    :raises TypeError: if it is none.
    """
    if type(net) is nn.Linear:
        return nn.Sequential(net)
    if type(net) is not nn.Sequential:
        raise TypeError(messages.no_chain(net, _WANTED))
    return net


def layers_of(net: nn.Sequential) -> tuple[list[tuple[Any, float]], int]:
    """
    The activations of a chain with their slopes, None and one for dense layers, and its inputs.

    :raises ValueError: naming a layer that is not known or does not fit.
    """
    layers: list[tuple[Any, float]] = []
    linear = [layer for layer in net if type(layer) is nn.Linear]
    size = width = linear[0].in_features if linear else 0
    for number, layer in enumerate(net):
        # Old-style norms put another weight in the place of the param.
        if type(layer) is nn.Linear and isinstance(layer.weight, nn.Parameter):
            if layer.in_features != width:
                raise ValueError(messages.mean_widths(number, layer.in_features, width))
            width = layer.out_features
            layers.append((None, 1.0))
        elif type(layer) in _SLOPES and not _jumps(layer):
            activation = copy.copy(layer)
            if getattr(activation, "inplace", False):  # what it changed would be the data
                activation.inplace = False  # type: ignore[assignment]
            layers.append((activation, _SLOPES[type(layer)](layer)))
        else:
            known: list[type] = [nn.Linear, *_SLOPES]
            names = [kind.__name__ for kind in known]
            raise ValueError(messages.unknown_layer(number, layer, names))
    if width != size:
        raise ValueError(messages.mean_widths(len(layers), size, width))
    return layers, size


def _jumps(layer: nn.Module) -> bool:
    """Softplus is replaced by its input above a threshold: from 15 on rounding hides the step."""
    return isinstance(layer, nn.Softplus) and layer.threshold < 15
