# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel that is a mixture of one kernel at several scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from jax.typing import ArrayLike
from numpyro.distributions import Distribution
from numpyro.distributions.util import validate_sample

from numpyro_spread._pytree import widened
from numpyro_spread.noise.base import SpreadNoise
from spread_core.noise.levels import MultiLevel


class LevelMixture(Distribution):
    """
    A mixture of distributions of one form, one draw of whose component serves the whole event.

    :param weights: of the components: L numbers, or an array of shape (L,) or batch + (L,).
    :param components: L distributions of the same batch and event shape.
    :param around: None, or x, the levels, and the noise around zero at level one: if it is known
        that y = x + level * noise, one draw of the noise is enough.
    """

    pytree_data_fields = ("_weights", "_components", "_around")

    def __init__(
        self,
        weights: tuple[float, ...] | jax.Array,
        components: Sequence[Distribution],
        around: tuple[jax.Array, Any, Distribution] | None = None,
    ) -> None:
        first = components[0]
        batch_shape = jnp.broadcast_shapes(first.batch_shape, getattr(weights, "shape", (1,))[:-1])
        # Numbers stay numbers: their type is that of the values.
        self._weights, self._components, self._around = weights, tuple(components), around
        super().__init__(batch_shape, first.event_shape)

    @property
    def support(self) -> Any:
        """That of the components."""
        return self._components[0].support

    @property
    def has_rsample(self) -> bool:
        """Whether draws have a gradient, given their level."""
        return all(part.has_rsample for part in self._components)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> jax.Array:
        """The log density of the mixture, in nats."""
        terms = jnp.stack([part.log_prob(value) for part in self._components], -1)
        return jax.nn.logsumexp(terms + jnp.log(jnp.asarray(self._weights, terms.dtype)), axis=-1)

    @property
    def mean(self) -> jax.Array:
        """Mean of the mixture."""
        return self._averaged([jnp.asarray(part.mean) for part in self._components])

    @property
    def variance(self) -> jax.Array:
        """Variance of the mixture."""
        parts = self._components
        squares = self._averaged([part.variance + jnp.square(part.mean) for part in parts])
        return squares - jnp.square(self.mean)

    def rsample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws that are reparametrised given their level."""
        return self.draw(key, sample_shape)[0]

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws, reparametrised given their level."""
        assert key is not None
        return self.draw(key, sample_shape)[0]

    def draw(
        self, rng_key: jax.Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[jax.Array, jax.Array]:
        """Draws, and the numbers of their components, of shape sample + batch."""
        index_key, draw_key = random.split(rng_key)
        shape, ones = (*sample_shape, *self.batch_shape), (1,) * self.event_dim
        if self._around is not None:
            x, levels, noise = self._around
            index = self._numbers(index_key, shape, x)
            level = jnp.asarray(levels, x.dtype)[index].reshape((*shape, *ones))
            # Samplers draw in the default type, which under x64 is wider than that of float32 data.
            return x + level * noise.sample(draw_key, sample_shape).astype(x.dtype), index
        keys = random.split(draw_key, len(self._components))
        drawn = [
            part.sample(k, sample_shape) for part, k in zip(self._components, keys, strict=True)
        ]
        whole = jnp.broadcast_to(jnp.stack(drawn), (len(drawn), *shape, *self.event_shape))
        index = self._numbers(index_key, shape, whole)
        return jnp.take_along_axis(whole, index.reshape(1, *shape, *ones), 0)[0], index

    def _numbers(self, rng_key: jax.Array, shape: tuple[int, ...], x: jax.Array) -> jax.Array:
        """Numbers of components, drawn by the inverse of their distribution function."""
        below = jnp.cumsum(jnp.asarray(self._weights, x.dtype), -1)[..., :-1]
        uniform = random.uniform(rng_key, shape, x.dtype)
        return (uniform[..., None] >= below).sum(-1)

    def _averaged(self, values: list[jax.Array]) -> jax.Array:
        whole = jnp.stack(values, -1)
        weights = jnp.asarray(self._weights, whole.dtype)
        weights = weights.reshape(*weights.shape[:-1], *[1] * self.event_dim, weights.shape[-1])
        return (whole * weights).sum(-1)


@dataclass(frozen=True, eq=False)
class MultiLevelNoise(MultiLevel, SpreadNoise):
    r"""
    Spread noise at several levels: every datum gets one level, and the kernel at that scale.

        >>> import jax.numpy as jnp
        >>> from numpyro_spread import GaussianNoise
        >>> noise = MultiLevelNoise(GaussianNoise(1.0), [0.1, 0.3, 1.0])
        >>> noise(jnp.zeros((5, 2)), event_dim=1).batch_shape
        (5,)
        >>> float(MultiLevelNoise(GaussianNoise(1.0), [3.0, 4.0])(jnp.zeros(())).variance)
        12.5
    """

    kernel: SpreadNoise
    levels: Any  # numbers, or an array of shape (L,)
    weights: Any = None

    def _conditional(
        self, x: jax.Array, event_dim: int, validate_args: bool | None = None
    ) -> LevelMixture:
        def around(kernel: SpreadNoise, x: jax.Array) -> Distribution:
            return kernel._conditional(x, event_dim, validate_args)

        parts = [around(self._at_level(number), x) for number in range(len(self.levels))]
        standard = x, self.levels, around(self.kernel, jnp.zeros_like(x))
        return LevelMixture(self.weights, parts, standard)

    def _spread(self, fn: Any, extra: int) -> Distribution:
        if isinstance(fn, self._backend.delta):
            return self._spread_delta(fn, extra)
        parts = [self._at_level(number)._spread(fn, extra) for number in range(len(self.levels))]
        return LevelMixture(self.weights, parts)

    def draw_told(self, rng_key: jax.Array, x: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """
        One draw of y given x, and the number of the level of every datum.

        :param rng_key: random key.
        :param x: values of the site, of shape batch + event.
        """
        self._check_drawn(jnp.shape(x))
        self.check_value(x)
        x = jnp.asarray(widened(x))
        y, index = self._conditional(x, self._coupled_dims_of(x), validate_args=False).draw(rng_key)
        return y.astype(x.dtype), index
