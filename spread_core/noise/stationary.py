# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Stationary noise kernels that act element by element: y = x + scale * standard noise."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace

from spread_core.messages import noise
from spread_core.noise.base import Kernel, Shape, broadcast


class Elementwise(Kernel[Any, Any, Any]):
    """Independent noise on every element of x; all parameters are positive."""

    def __post_init__(self) -> None:
        for name in self._fields():
            value = getattr(self, name)
            if not self._backend.is_positive(value):
                raise ValueError(noise.bad_positive(type(self).__name__, name, value))
            object.__setattr__(self, name, self._backend.as_positive(value))

    @functools.cached_property
    def _shape(self) -> Shape:
        shapes = [getattr(getattr(self, name), "shape", ()) for name in self._fields()]
        full = broadcast(*shapes)
        if full is None:
            raise ValueError(noise.parameters_misfit(type(self).__name__, shapes))
        return full

    @property
    def _rank(self) -> int:
        """Number of rightmost dims over which the parameters differ."""
        sizes = self._shape
        return len(sizes) - next((i for i, size in enumerate(sizes) if size != 1), len(sizes))

    def _moves_with_data(self) -> bool:
        return not self._shape

    def _placed_dims(self, event_dim: int) -> int:
        return max(event_dim, self._rank, 1)

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        rank = self._rank
        return rank == 0 or tuple(drawn[-rank:]) == tuple(scored[-rank:])

    def _is_stationary(self) -> bool:
        return True

    def _scaled(self, factor: Any) -> Any:
        return self._changed(scale=self.scale * factor)  # type: ignore[attr-defined]

    def _check_event(self, shape: Sequence[int], event_dim: int) -> None:
        """A scale may broadcast like any parameter, but never widen the event of x."""
        full = self._broadcast(shape)
        event_shape = tuple(shape[len(shape) - event_dim :])
        if full is None or full[len(full) - event_dim :] != event_shape:
            raise ValueError(noise.scale_misfit(type(self).__name__, self._shape, shape, event_dim))

    def _check_site(self, shape: Sequence[int], event_dim: int) -> None:
        if self._broadcast(shape) != tuple(shape):
            raise ValueError(noise.scale_misfit(type(self).__name__, self._shape, shape, event_dim))

    def _check_drawn(self, shape: Sequence[int]) -> None:
        self._check_site(shape, 0)

    def _broadcast(self, shape: Sequence[int]) -> Shape | None:
        return broadcast(self._shape, shape) if self._shape else tuple(shape)

    def _for_components(self, event_dim: int) -> Any:
        if len(self._shape) <= event_dim:
            return self

        def with_component_dim(value: Any) -> Any:
            shape = getattr(value, "shape", ())
            cut = len(shape) - event_dim
            return value.reshape((*shape[:cut], 1, *shape[cut:])) if cut > 0 else value

        changes = {name: with_component_dim(getattr(self, name)) for name in self._fields()}
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


class Gaussian(Elementwise):
    r"""
    Gaussian spread noise, :math:`y = x + s\,\epsilon` with :math:`\epsilon \sim N(0, I)`.

    Its characteristic function is :math:`\exp(-s^2\omega^2/2)`. ``spread`` is exact for ``Delta``,
    ``Normal``, ``MultivariateNormal``, ``LowRankMultivariateNormal`` and mixtures of them.

    :param scale: standard deviation s, in units of x: a number, or an array that broadcasts to the
        event shape of x.
    :raises ValueError: if scale is not positive and finite.
    """

    scale: Any

    def characteristic_function(self, omega: Any) -> Any:
        r""":math:`\exp(-s^2\omega^2/2)` for every frequency in ``omega``."""
        u = self.scale * self._backend.as_array(omega)
        return array_namespace(u).exp(-0.5 * u**2)


class Laplace(Elementwise):
    r"""
    Laplace spread noise, of density :math:`\exp(-|y - x|/b)/(2b)` in every element.

    Its characteristic function is :math:`1/(1 + b^2\omega^2)`.

    :param scale: scale b, in units of x: a number, or an array that broadcasts to the event shape.
    :raises ValueError: if scale is not positive and finite.
    """

    scale: Any

    def characteristic_function(self, omega: Any) -> Any:
        r""":math:`1/(1 + b^2\omega^2)` for every frequency in ``omega``."""
        return 1.0 / (1.0 + (self.scale * self._backend.as_array(omega)) ** 2)


class StudentT(Elementwise):
    r"""
    Student t spread noise with ``df`` degrees of freedom; ``df=1`` is Cauchy noise.

    Its characteristic function is
    :math:`K_{\nu/2}(u)\, u^{\nu/2} / (\Gamma(\nu/2)\, 2^{\nu/2-1})` with
    :math:`u = \sqrt\nu\, s|\omega|`; for Cauchy noise :math:`\exp(-s|\omega|)`.

    :param df: degrees of freedom, a number or array.
    :param scale: scale s, in units of x: a number, or an array that broadcasts to the event shape.
    :raises ValueError: if df or scale is not positive and finite.
    """


class Logistic(Elementwise):
    r"""
    Logistic spread noise, whose distribution function is :math:`1/(1 + e^{-(y-x)/s})`.

    Its characteristic function is :math:`\pi s\omega / \sinh(\pi s\omega)`.

    :param scale: scale s, in units of x: a number, or an array that broadcasts to the event shape.
    :raises ValueError: if scale is not positive and finite.
    """

    scale: Any

    def characteristic_function(self, omega: Any) -> Any:
        r""":math:`\pi s\omega / \sinh(\pi s\omega)` for every frequency in ``omega``."""
        u = abs(math.pi * self.scale * self._backend.as_array(omega))
        xp = array_namespace(u)
        # u / sinh(u) written with decaying exponentials only: sinh overflows at 89 in float32. The
        # inner where keeps 0/0 out of the gradient.
        safe = xp.where(u == 0, 1.0, u)
        return xp.where(u == 0, 1.0, 2.0 * safe * xp.exp(-safe) / -xp.expm1(-2.0 * safe))
