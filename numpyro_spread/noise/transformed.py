# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernels in the coordinates of an injective function of x."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints, transforms
from numpyro.distributions.transforms import Transform

from numpyro_spread import _parents
from numpyro_spread.noise.base import SpreadNoise, is_concrete, where_valid
from spread_core.messages import noise as noise_messages


def _parts(transform: Transform) -> Sequence[Transform]:
    """The transforms that must all be injective for this one to be."""
    if isinstance(transform, transforms.ComposeTransform):
        return transform.parts
    if isinstance(transform, transforms.CatTransform):
        return transform.transforms
    if isinstance(transform, transforms.IndependentTransform):
        return [transform.base_transform]
    inverse = _parents.inverted(transform)
    if inverse is not None:
        return [inverse]
    return []


def _parameter_dims(transform: Transform) -> int:
    """Number of rightmost dims over which its own numbers differ."""
    dims = [_parameter_dims(part) for part in _parts(transform)]
    own = [v for v in vars(transform).values() if isinstance(v, jax.Array | np.ndarray)]
    return max(dims + [v.ndim for v in own if v.size > 1], default=0)


def _is_degenerate(value: Any) -> bool:
    if not is_concrete(value):
        return False
    array = np.asarray(value)
    return bool(np.any((array == 0) | ~np.isfinite(array)))


def _valid_parts(transform: Transform) -> Iterator[jax.Array]:
    """Check at run time, under jit, that parameters that must not be 0 are not 0."""
    for part in _parts(transform):
        yield from _valid_parts(part)
    parameter: Any = None
    if isinstance(transform, transforms.AffineTransform):
        parameter = transform.scale
    elif isinstance(transform, transforms.PowerTransform):
        parameter = transform.exponent
    elif isinstance(transform, transforms.LowerCholeskyAffine):
        parameter = jnp.diagonal(transform.scale_tril, axis1=-2, axis2=-1)
    elif isinstance(transform, transforms.PermuteTransform):
        indices = transform.permutation
        if not is_concrete(indices):
            yield (jnp.sort(indices) == jnp.arange(len(indices))).all()
    if parameter is not None and not is_concrete(parameter):
        yield ((parameter != 0) & jnp.isfinite(parameter)).all()


def _why_not_injective(transform: Transform) -> str | None:
    """The reason, or None where no reason is known: NumPyro's transforms carry no such flag."""
    for part in _parts(transform):
        reason = _why_not_injective(part)
        if reason is not None:
            return reason
    if isinstance(transform, transforms.AbsTransform):
        return "x and -x have the same absolute value"
    if isinstance(transform, transforms.AffineTransform) and _is_degenerate(transform.scale):
        return "a scale of 0 maps every value to the same one"
    if isinstance(transform, transforms.PowerTransform) and _is_degenerate(transform.exponent):
        return "an exponent of 0 maps every value to 1"
    if isinstance(transform, transforms.LowerCholeskyAffine):
        tril = transform.scale_tril
        if is_concrete(tril) and _is_degenerate(np.diagonal(np.asarray(tril), axis1=-2, axis2=-1)):
            return "its scale_tril is singular"
    if isinstance(transform, transforms.PermuteTransform) and is_concrete(transform.permutation):
        indices = np.asarray(transform.permutation)
        if not np.array_equal(np.sort(indices), np.arange(indices.size)):
            return "its permutation drops an element"
    if not getattr(transform, "bijective", True):
        return "its attribute bijective is False"
    return None


def _name(transform: Transform) -> str:
    """What to call a transform: torch and NumPyro wrap inverses into a class without a name."""
    inverse = _parents.inverted(transform)
    if inverse is not None:
        return f"the inverse of {_name(inverse)}"
    return type(transform).__name__


def _is_real_array(transform: Transform) -> bool:
    """Whether noise can be added to f(x): it is neither complex nor a tree of arrays."""
    if isinstance(transform, transforms.UnpackTransform):
        return False
    codomain = transform.codomain
    while isinstance(codomain, constraints._IndependentConstraint):
        codomain = codomain.base_constraint
    return codomain is not constraints.complex


@dataclass(frozen=True, eq=False)
class TransformedNoise(SpreadNoise):
    r"""
    Noise in the coordinates of an injective transform: :math:`y = f(x) + \text{noise}`.

    Injectivity of f is what keeps the spread divergence zero only at equality [1, section 3.2].
    Values that the model observes, and that the guide reads, live in the coordinates of y.
    NumPyro's transforms are injective on their domain, except a few that are refused by name; a
    subclass of your own is trusted unless it says ``bijective = False``.

        >>> import jax.numpy as jnp
        >>> from numpyro.distributions.transforms import ExpTransform
        >>> from numpyro_spread import GaussianNoise
        >>> TransformedNoise(ExpTransform(), GaussianNoise(0.1))(jnp.zeros(3)).mean.tolist()
        [1.0, 1.0, 1.0]

    **References**

    [1] `Spread Divergence`, Zhang, Hayes, Bird, Habib, Barber, https://arxiv.org/abs/1811.08968

    :param transform: a :class:`numpyro.distributions.transforms.Transform`, injective on its
        domain.
    :param noise: the kernel around f(x).
    :raises TypeError: if transform is not a Transform or noise is not a kernel.
    :raises ValueError: if the transform is not injective.
    """

    transform: Transform
    noise: SpreadNoise

    def __post_init__(self) -> None:
        if not isinstance(self.transform, Transform):
            base = "numpyro.distributions.transforms.Transform"
            raise TypeError(noise_messages.not_a_transform(self.transform, base))
        if not isinstance(self.noise, SpreadNoise):
            raise TypeError("TransformedNoise: " + noise_messages.not_a_kernel(self.noise))
        reason = _why_not_injective(self.transform)
        if reason is not None:
            raise ValueError(noise_messages.not_injective(_name(self.transform), reason))
        if not _is_real_array(self.transform):
            raise ValueError(noise_messages.not_a_real_array(_name(self.transform)))

    @property
    def coupled_dims(self) -> int:  # type: ignore[override]
        """Event dims of x that the transform or the noise around it needs."""
        return max(self.transform.domain.event_dim, self.noise.coupled_dims - self._added_dims)

    @property
    def _added_dims(self) -> int:
        return self.transform.codomain.event_dim - self.transform.domain.event_dim

    def check_value(self, x: ArrayLike) -> None:
        """
        Refuse values of a type that the kernel around f(x) cannot take.

        :raises TypeError: if x is not of a floating type.
        """
        self.noise.check_value(x)

    def draw(self, rng_key: jax.Array, x: ArrayLike) -> jax.Array:
        """One draw of y given x, of the shape of f(x)."""
        self.check_value(x)
        self._check_widening(jnp.shape(x))
        return self.noise.draw(rng_key, self._map(jnp.asarray(x)))

    def _check_widening(self, shape: tuple[int, ...]) -> None:
        if self.transform.domain.event_dim > 0 or not _parameter_dims(self.transform):
            return
        try:
            fits = tuple(self.transform.forward_shape(shape)) == shape
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(noise_messages.transform_misfit(_name(self.transform), shape))

    def _map(self, x: jax.Array) -> jax.Array:
        transform = self.transform
        with jax.ensure_compile_time_eval():
            inside = transform.domain(x)
        if is_concrete(inside) and not np.all(np.asarray(inside)):
            raise ValueError(noise_messages.outside_domain(_name(transform), transform.domain))
        # Under x64 a transform's own numbers would widen float32 data.
        y = jnp.asarray(transform(x)).astype(x.dtype)
        if not is_concrete(inside):
            y = where_valid(y, inside.reshape(*inside.shape, *[1] * (y.ndim - inside.ndim)))
        for valid in _valid_parts(transform):
            y = where_valid(y, valid)
        return y

    def _moves_with_data(self) -> bool:
        alike = self.coupled_dims == 0 and not _parameter_dims(self.transform)
        return alike and self.noise._moves_with_data()

    def _placed_dims(self, event_dim: int) -> int:
        own = max(self.coupled_dims, _parameter_dims(self.transform))
        return max(event_dim, own, self.noise._placed_dims(event_dim))

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        if self.transform.domain.event_dim == 0 and not _parameter_dims(self.transform):
            return self.noise._drawn_alike(drawn, scored, event_dim)
        return super()._drawn_alike(drawn, scored, event_dim)

    def _check_site(self, shape: tuple[int, ...], event_dim: int) -> None:
        if event_dim >= self.coupled_dims:
            mapped = tuple(self.transform.forward_shape(shape))
            self.noise._check_site(mapped, event_dim + self._added_dims)

    def _for_components(self, event_dim: int) -> SpreadNoise:
        # The transform's own parameters could have the shape of the batch too; only scalars and
        # event-shaped ones keep their meaning, and any other clashes with the shapes below.
        inner = self.noise._for_components(event_dim + self._added_dims)
        return TransformedNoise(self.transform, inner)

    def _conditional(self, x: jax.Array, event_dim: int) -> Distribution:
        return self.noise._conditional(self._map(x), event_dim + self._added_dims)
