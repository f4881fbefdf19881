# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel round x + g(x), where g is a net that moves no two points onto one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace

from spread_core.math._arrays import Array, cast
from spread_core.messages import learned as messages
from spread_core.noise.base import Kernel

#: How steep activations are at most. Those above one leave less to the dense layers.
IDENTITY, SIGMOID, SILU, GELU = 1.0, 0.25, 1.1, 1.13

#: Kernel, of shape inputs x outputs, and bias or None, of every dense layer.
Weights = Sequence[tuple[Array, Array | None]]


class Chain:
    """
    A net g, dense layers and activations in turn, whose Lipschitz constant has a bound.

    The bound is the product of those of its layers, so that dense layers share what activations
    leave. The largest singular value of each is computed exactly. The backends' spectral
    normalisation estimates it from below, by a step of power iteration at every call: the bound
    would not be sure, and data and model would pass through different functions in one step.

    :param layers: the activations, and None for every dense layer.
    :param slope: the product of the largest slopes of the activations.
    :param size: number of inputs, which is that of outputs.
    :param lipschitz: the bound.
    """

    def __init__(
        self,
        layers: Sequence[Callable[[Array], Array] | None],
        slope: float,
        size: int,
        lipschitz: float,
    ) -> None:
        self.layers, self.size = tuple(layers), size
        self._share = (lipschitz / slope) ** (1 / sum(layer is None for layer in layers))

    def bounded(self, weights: Weights) -> Weights:
        """
        The weights, of which those that are too large are scaled down.

        :param weights: of the dense layers.
        """

        def at_most(kernel: Array) -> Array:
            xp = array_namespace(kernel)
            gram = kernel @ kernel.mT if kernel.shape[0] < kernel.shape[1] else kernel.mT @ kernel
            # Half the time of a singular value decomposition, and no root of zero.
            squared = xp.linalg.eigvalsh(gram)[-1]
            norm = xp.maximum(squared, cast(self._share**2, squared)) ** 0.5
            return kernel * (self._share / norm)

        return [(at_most(kernel), bias) for kernel, bias in weights]

    def __call__(self, weights: Weights, x: Array) -> Array:
        """
        g(x).

        :param weights: as :meth:`bounded` gave them.
        :param x: of shape (..., size).
        """
        left = iter(weights)
        for layer in self.layers:
            if layer is None:
                kernel, bias = next(left)
                x = x @ cast(kernel, x)
                x = x if bias is None else x + cast(bias, x)
            else:
                x = layer(x)
        return x


class Residual(Kernel[Any, Any, Any]):
    r"""
    Noise round f(x) = x + g(x), with g of a Lipschitz constant below one, so that f is injective.

    An event of several dimensions (an image) is flattened to its elements.
    """

    net: Any
    noise: Any

    coupled_dims = 1

    @property
    def _size(self) -> int:
        return int(self.net.func.size)

    def check_value(self, x: Any) -> None:
        """
        Refuse values of a type that the noise cannot take.

        :raises TypeError: if x is not of a floating type.
        """
        self.noise.check_value(x)

    def _check_drawn(self, shape: Sequence[int]) -> None:
        self.noise._check_drawn(shape)

    def _check_site(self, shape: Sequence[int], event_dim: int) -> None:
        self.noise._check_site(shape, event_dim)

    def _coupled_dims_of(self, x: Any) -> int:
        for event_dim in range(1, x.ndim + 1):
            if math.prod(x.shape[-event_dim:]) == self._size:
                return event_dim
        raise ValueError(messages.mean_misfit(self._size, x.shape[-1:]))

    def _placed_dims(self, event_dim: int) -> int:
        return max(super()._placed_dims(event_dim), self.noise._placed_dims(event_dim))

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        return bool(self.noise._drawn_alike(drawn, scored, event_dim))

    def _for_components(self, event_dim: int) -> Any:
        return self._changed(noise=self.noise._for_components(event_dim))

    def _mixes_elements(self) -> bool:
        return True

    def _conditional(self, x: Any, event_dim: int, validate_args: bool | None = None) -> Any:
        batch, event = x.shape[: x.ndim - event_dim], x.shape[x.ndim - event_dim :]
        if math.prod(event) != self._size:
            raise ValueError(messages.mean_misfit(self._size, event))
        flat = x.reshape((*batch, self._size))
        mean = (flat + self.net(flat)).reshape(x.shape)
        return self.noise._conditional(mean, event_dim, validate_args)
