# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel in the coordinates of an injective function of x."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from spread_core.messages import noise as noise_messages
from spread_core.noise.base import Kernel

ZERO_SCALE = "a scale of 0 maps every value to the same one"
ZERO_EXPONENT = "an exponent of 0 maps every value to 1"
SINGULAR = "its scale_tril is singular"
NOT_BIJECTIVE = "its attribute bijective is False"


@dataclasses.dataclass(frozen=True)
class Transforms:
    """
    What a backend knows about its transforms.

    :param base: class of all transforms.
    :param base_name: where users find it.
    :param inverted: the transform whose inverse a transform is; None if it is not an inverse.
    :param parts: the transforms that a transform consists of, all of which must be injective.
    :param arrays: the arrays that a transform holds itself.
    :param vanishing: the parameters that must be neither 0 nor infinite, and what happens if they
        are.
    :param permutation: the order in which a permutation puts the elements; None for other
        transforms.
    :param other_reason: why a transform is not injective whatever its parameters are; None if it
        is.
    """

    base: type
    base_name: str
    inverted: Callable[[Any], Any]
    parts: Callable[[Any], Sequence[Any]]
    arrays: Callable[[Any], list[Any]]
    vanishing: Callable[[Any], list[tuple[Any, str]]]
    permutation: Callable[[Any], Any]
    other_reason: Callable[[Any], str | None]

    def all_parts(self, transform: Any) -> list[Any]:
        """A transform behind its parts, and those behind theirs."""
        inverse = self.inverted(transform)
        parts = self.parts(transform) if inverse is None else [inverse]
        return [*(each for part in parts for each in self.all_parts(part)), transform]

    def name(self, transform: Any) -> str:
        """What to call a transform: torch and NumPyro wrap inverses into a class without a name."""
        inner = self.inverted(transform)
        return type(transform).__name__ if inner is None else f"the inverse of {self.name(inner)}"

    def parameter_dims(self, transform: Any) -> int:
        """Number of rightmost dims over which its own numbers differ."""
        arrays = [array for part in self.all_parts(transform) for array in self.arrays(part)]
        return max((len(a.shape) for a in arrays if math.prod(a.shape) > 1), default=0)


class Transformed(Kernel[Any, Any, Any]):
    r"""
    Noise in the coordinates of an injective transform: :math:`y = f(x) + \text{noise}`.

    Injectivity of f is what keeps the spread divergence zero only at equality [1, section 3.2].
    Values that the model observes, and that the guide reads, live in the coordinates of y. Known
    transforms that are not injective, as they are or for their parameters, are refused by name. One
    of your own needs ``bijective = True`` in Pyro; in NumPyro it is trusted unless it says
    ``bijective = False``.

    **References**

    [1] `Spread Divergence`, Zhang, Hayes, Bird, Habib, Barber, https://arxiv.org/abs/1811.08968

    :param transform: a :class:`torch.distributions.transforms.Transform`, Pyro's flows included, or
        a :class:`numpyro.distributions.transforms.Transform`; injective on its domain.
    :param noise: the kernel around f(x).
    :raises TypeError: if transform is not a Transform or noise is not a kernel.
    :raises ValueError: if the transform is not injective.
    """

    transform: Any
    noise: Any

    _transforms: ClassVar[Transforms]

    def __post_init__(self) -> None:
        known = self._transforms
        if not isinstance(self.transform, known.base):
            raise TypeError(noise_messages.not_a_transform(self.transform, known.base_name))
        if not self._backend.is_kernel(self.noise):
            raise TypeError("TransformedNoise: " + noise_messages.not_a_kernel(self.noise))
        for part in known.all_parts(self.transform):
            reason = self._why_not_injective(part)
            if reason is not None:
                name = known.name(self.transform)
                raise ValueError(noise_messages.not_injective(name, reason))

    def _why_not_injective(self, transform: Any) -> str | None:
        """The reason, whatever the parts of the transform are; None where no reason is known."""
        for parameter, reason in self._transforms.vanishing(transform):
            known = self._backend.known(parameter)
            if known is not None and not (np.isfinite(known) & (known != 0)).all():
                return reason
        indices = self._transforms.permutation(transform)
        indices = None if indices is None else self._backend.known(indices)
        if indices is not None and not np.array_equal(np.sort(indices), np.arange(len(indices))):
            return "its permutation drops an element"
        return self._transforms.other_reason(transform)

    @property
    def coupled_dims(self) -> int:  # type: ignore[override]
        """Event dims of x that the transform or the noise around it needs."""
        return max(self.transform.domain.event_dim, self.noise.coupled_dims - self._added_dims)

    @property
    def _added_dims(self) -> int:
        return self.transform.codomain.event_dim - self.transform.domain.event_dim

    @property
    def _own_dims(self) -> int:
        return self._transforms.parameter_dims(self.transform)

    def check_value(self, x: Any) -> None:
        """
        Refuse values of a type that the kernel around f(x) cannot take.

        :raises TypeError: if x is not of a floating type.
        """
        self.noise.check_value(x)

    def _check_drawn(self, shape: Sequence[int]) -> None:
        if self.transform.domain.event_dim > 0 or not self._own_dims:
            return
        try:
            fits = tuple(self.transform.forward_shape(shape)) == tuple(shape)
        except (TypeError, ValueError, RuntimeError):
            fits = False
        if not fits:
            name = self._transforms.name(self.transform)
            raise ValueError(noise_messages.transform_misfit(name, shape))

    def _check_site(self, shape: Sequence[int], event_dim: int) -> None:
        if event_dim >= self.coupled_dims:
            mapped = self.transform.forward_shape(tuple(shape))
            self.noise._check_site(mapped, event_dim + self._added_dims)

    def _moves_with_data(self) -> bool:
        alike = self._is_elementwise() and not self._own_dims
        return alike and self.noise._moves_with_data()

    def _placed_dims(self, event_dim: int) -> int:
        own = max(self.coupled_dims, self._own_dims)
        return max(event_dim, own, self.noise._placed_dims(event_dim))

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        if self.transform.domain.event_dim == 0 and not self._own_dims:
            return self.noise._drawn_alike(drawn, scored, event_dim)
        return super()._drawn_alike(drawn, scored, event_dim)

    def _for_components(self, event_dim: int) -> Any:
        # The transform's own parameters could have the shape of the batch too; only scalars and
        # event-shaped ones keep their meaning, and any other clashes with the shapes below.
        inner = self.noise._for_components(event_dim + self._added_dims)
        return dataclasses.replace(self, noise=inner)  # type: ignore[type-var]

    def _is_elementwise(self) -> bool:
        return self.coupled_dims == 0 and self.noise._is_elementwise()

    def _mixes_elements(self) -> bool:
        known = self._transforms
        parts = known.all_parts(self.transform)
        single = (p for p in parts if not known.parts(p) and known.inverted(p) is None)
        return any(part.domain.event_dim > 0 for part in single)

    def _scaled(self, factor: Any) -> Any:
        return dataclasses.replace(self, noise=self.noise._scaled(factor))  # type: ignore[type-var]

    def _at_events(self, event_dim: int) -> Any:
        inner = self.noise._at_events(event_dim + self._added_dims)
        # The transform remembers its last value and may be learned: it stays the same object.
        return self if inner is self.noise else dataclasses.replace(self, noise=inner)  # type: ignore[type-var]

    def _map(self, x: Any) -> Any:
        """f(x), if x lies in the domain of f."""
        raise NotImplementedError

    def _conditional(self, x: Any, event_dim: int, validate_args: bool | None = None) -> Any:
        return self.noise._conditional(self._map(x), event_dim + self._added_dims, validate_args)
