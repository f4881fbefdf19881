# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel for class labels."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from numpyro_spread._pytree import widened
from numpyro_spread.noise.base import SpreadNoise, is_concrete, where_valid
from spread_core.noise.channel import SINGULAR_TOLERANCE, Channel, sum_tolerance


@dataclass(frozen=True, eq=False)
class ChannelNoise(Channel, SpreadNoise):
    r"""
    Discrete spread noise: a channel :math:`P_{ij} = p(y=i \mid x=j)`.

        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> noise = ChannelNoise.symmetric(4, flip=0.2)
        >>> probs = noise.spread(dist.Categorical(jnp.array([1.0, 0.0, 0.0, 0.0]))).probs
        >>> [round(float(p), 3) for p in probs]
        [0.85, 0.05, 0.05, 0.05]
    """

    matrix: ArrayLike

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_concrete(self.matrix):
            matrix = jnp.asarray(self.matrix)
            wide = lax.stop_gradient(widened(matrix))
            off = jnp.abs(wide.sum(0) - 1).max()
            values = jnp.linalg.svd(wide, compute_uv=False)
            regular = values[-1] > SINGULAR_TOLERANCE * values[0]
            # Written so that NaN fails too.
            valid = (matrix >= 0).all() & (off <= sum_tolerance(matrix)) & regular
            object.__setattr__(self, "matrix", where_valid(matrix, valid))

    def draw(self, rng_key: jax.Array, x: ArrayLike) -> jax.Array:
        """One draw of y given x; where jit hid that x or the channel is wrong, no label at all."""
        y, x = super().draw(rng_key, x), jnp.asarray(x)
        valid = (x >= 0) & (x < self.num_classes) & jnp.isfinite(jnp.asarray(self.matrix)).all()
        return jnp.where(valid, y, self.num_classes)

    def _conditional(
        self, x: jax.Array, event_dim: int, validate_args: bool | None = None
    ) -> Distribution:
        # A label out of range that only shows inside jit gives NaN, not a neighbour's column.
        columns = jnp.asarray(self.matrix).T.at[x]
        probs = columns.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return dist.Categorical(probs).to_event(event_dim)

    def _spread_exactly(self, fn: Distribution, extra: int) -> Distribution | None:
        if not isinstance(fn, dist.CategoricalProbs | dist.CategoricalLogits):
            return None
        self._check_classes(jnp.shape(fn.probs)[-1])
        probs = fn.probs @ jnp.asarray(self.matrix, jnp.result_type(fn.probs)).T
        return dist.Categorical(probs).to_event(extra)
