# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel round x + g(x), where g is a net that moves no two points onto one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_spread.noise.base import SpreadNoise
from spread_core.messages import learned as messages
from spread_core.noise.residual import GELU, IDENTITY, SIGMOID, SILU, Residual

_WANTED = "a flax.linen.Sequential of Dense layers and activations"
# By identity: functions of JAX, which flax has under the same names.
_SLOPES = {
    "elu": (jax.nn.elu, IDENTITY),
    "gelu": (jax.nn.gelu, GELU),
    "identity": (jax.nn.identity, IDENTITY),
    "leaky_relu": (jax.nn.leaky_relu, IDENTITY),
    "relu": (jax.nn.relu, IDENTITY),
    "silu": (jax.nn.silu, SILU),
    "sigmoid": (jax.nn.sigmoid, SIGMOID),
    "softplus": (jax.nn.softplus, IDENTITY),
    "soft_sign": (jax.nn.soft_sign, IDENTITY),
    "tanh": (jnp.tanh, IDENTITY),
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


def chain_of(net: Any) -> list[Any]:
    """
    The layers of a chain.

    :raises TypeError: if the net is none.
    """
    # A module of a library that was never imported cannot exist.
    linen = sys.modules.get("flax.linen")
    if linen is not None and type(net) is linen.Dense:
        return [net]
    if linen is None or type(net) is not linen.Sequential:
        raise TypeError(messages.no_chain(net, _WANTED))
    return list(net.layers)


def is_dense(layer: Any) -> bool:
    """Whether a layer of a chain has params."""
    return type(layer) is sys.modules["flax.linen"].Dense


def layers_of(chain: list[Any]) -> tuple[list[tuple[Any, float]], int]:
    """
    The activations of a chain with their slopes, None and one for dense layers, and its inputs.

    :raises ValueError: naming a layer that is not known.
    """
    layers: list[tuple[Any, float]] = []
    size = 0
    for number, layer in enumerate(chain):
        if is_dense(layer):
            size = layer.features  # there are as many inputs as outputs
            layers.append((None, 1.0))
            continue
        found = [each for each in _SLOPES.values() if each[0] is layer]
        if not found:
            raise ValueError(messages.unknown_layer(number, layer, ["Dense", *_SLOPES]))
        layers.append(found[0])
    return layers, size
