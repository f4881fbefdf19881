# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel in the coordinates of an injective function of x."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpyro.distributions import constraints, transforms
from numpyro.distributions.transforms import Transform

from numpyro_spread import _parents
from numpyro_spread.noise.base import SpreadNoise, is_concrete, where_valid
from spread_core.messages import noise as noise_messages
from spread_core.noise import transformed


def _parts(transform: Any) -> Sequence[Transform]:
    if isinstance(transform, transforms.ComposeTransform):
        return transform.parts
    if isinstance(transform, transforms.CatTransform):
        return transform.transforms
    if isinstance(transform, transforms.IndependentTransform):
        return [transform.base_transform]
    return []


def _arrays(transform: Any) -> list[Any]:
    return [v for v in vars(transform).values() if isinstance(v, jax.Array | np.ndarray)]


def _vanishing(transform: Any) -> list[tuple[Any, str]]:
    if isinstance(transform, transforms.AffineTransform):
        return [(transform.scale, transformed.ZERO_SCALE)]
    if isinstance(transform, transforms.PowerTransform):
        return [(transform.exponent, transformed.ZERO_EXPONENT)]
    if isinstance(transform, transforms.LowerCholeskyAffine):
        tril: Any = transform.scale_tril
        # NumPy's of what is known: inside a jit trace JAX's would be a tracer.
        xp: Any = np if is_concrete(tril) else jnp
        return [(xp.diagonal(xp.asarray(tril), axis1=-2, axis2=-1), transformed.SINGULAR)]
    return []


def _permutation(transform: Any) -> Any:
    return transform.permutation if isinstance(transform, transforms.PermuteTransform) else None


def _other_reason(transform: Any) -> str | None:
    if isinstance(transform, transforms.AbsTransform):
        return "x and -x have the same absolute value"
    return None if getattr(transform, "bijective", True) else transformed.NOT_BIJECTIVE


def _valid_at_run_time(transform: Any) -> Iterator[jax.Array]:
    """Whether parameters that only a compiled step knows leave a transform injective."""
    for parameter, _ in _vanishing(transform):
        if not is_concrete(parameter):
            yield ((parameter != 0) & jnp.isfinite(parameter)).all()
    indices = _permutation(transform)
    if indices is not None and not is_concrete(indices):
        yield (jnp.sort(indices) == jnp.arange(len(indices))).all()


def _is_real_array(transform: Transform) -> bool:
    """Whether noise can be added to f(x): it is neither complex nor a tree of arrays."""
    if isinstance(transform, transforms.UnpackTransform):
        return False
    codomain = transform.codomain
    while isinstance(codomain, constraints._IndependentConstraint):
        codomain = codomain.base_constraint
    return codomain is not constraints.complex


@dataclass(frozen=True, eq=False)
class TransformedNoise(transformed.Transformed, SpreadNoise):
    r"""
    Noise in the coordinates of an injective transform: :math:`y = f(x) + \text{noise}`.

        >>> import jax.numpy as jnp
        >>> from numpyro.distributions.transforms import ExpTransform
        >>> from numpyro_spread import GaussianNoise
        >>> TransformedNoise(ExpTransform(), GaussianNoise(0.1))(jnp.zeros(3)).mean.tolist()
        [1.0, 1.0, 1.0]
    """

    transform: Transform
    noise: SpreadNoise

    _transforms = transformed.Transforms(
        base=Transform,
        base_name="numpyro.distributions.transforms.Transform",
        inverted=_parents.inverted,
        parts=_parts,
        arrays=_arrays,
        vanishing=_vanishing,
        permutation=_permutation,
        other_reason=_other_reason,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _is_real_array(self.transform):
            name = self._transforms.name(self.transform)
            raise ValueError(noise_messages.not_a_real_array(name))

    def draw(self, rng_key: jax.Array, x: ArrayLike) -> jax.Array:
        """One draw of y given x, of the shape of f(x)."""
        self.check_value(x)
        self._check_drawn(jnp.shape(x))
        return self.noise.draw(rng_key, self._map(jnp.asarray(x)))

    def _map(self, x: jax.Array) -> jax.Array:
        transform = self.transform
        with jax.ensure_compile_time_eval():
            inside = transform.domain(x)
        if is_concrete(inside) and not np.all(np.asarray(inside)):
            raise ValueError(
                noise_messages.outside_domain(self._transforms.name(transform), transform.domain)
            )
        # Under x64 a transform's own numbers would widen float32 data.
        y = jnp.asarray(transform(x)).astype(x.dtype)
        if not is_concrete(inside):
            y = where_valid(y, inside.reshape(*inside.shape, *[1] * (y.ndim - inside.ndim)))
        for part in self._transforms.all_parts(transform):
            for valid in _valid_at_run_time(part):
                y = where_valid(y, valid)
        return y
