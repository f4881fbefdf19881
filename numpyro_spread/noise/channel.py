# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernels for class labels."""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from numpyro_spread.noise.base import SpreadNoise, as_parameter, is_concrete, where_valid
from spread_core.messages import noise

# Columns summed in float32 miss 1 by rounding; singular values below this share of the largest
# cannot be distinguished from 0 in the single precision that most models run in.
_SUM_TOLERANCE = 1e-5
_SINGULAR_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class ChannelNoise(SpreadNoise):
    r"""
    Discrete spread noise: a channel :math:`P_{ij} = p(y=i \mid x=j)`.

    The spread of a distribution p over classes is P p, so an invertible P keeps the divergence zero
    only at equality [1, section 2.2]. ``spread`` is exact for ``Delta`` and ``Categorical``.

        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> noise = ChannelNoise.symmetric(4, flip=0.2)
        >>> probs = noise.spread(dist.Categorical(jnp.array([1.0, 0.0, 0.0, 0.0]))).probs
        >>> [round(float(p), 3) for p in probs]
        [0.85, 0.05, 0.05, 0.05]

    **References**

    [1] `Spread Divergence`, Zhang, Hayes, Bird, Habib, Barber, https://arxiv.org/abs/1811.08968

    :param matrix: array of shape (K, K) whose columns sum to 1.
    :raises ValueError: if the matrix is not square, not column-stochastic, or singular.
    """

    matrix: ArrayLike

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", as_parameter(self.matrix))
        shape = jnp.shape(self.matrix)
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
            raise ValueError(noise.channel_shape(shape))
        if is_concrete(self.matrix):
            _check_channel(np.asarray(self.matrix, float))
        else:
            matrix = jnp.asarray(self.matrix)
            off = jnp.abs(matrix.sum(0) - 1).max()
            # Written so that NaN fails too.
            valid = (matrix >= 0).all() & (off <= _SUM_TOLERANCE) & _is_regular(matrix)
            object.__setattr__(self, "matrix", where_valid(matrix, valid))

    @classmethod
    def symmetric(cls, num_classes: int, flip: ArrayLike) -> ChannelNoise:
        r"""
        The channel :math:`(1-e) I + (e/K)\, 1 1^\top`: with probability e = ``flip`` the label is
        drawn afresh, uniformly over all K classes (its own included).

        :param num_classes: number of classes K, at least 2.
        :param flip: probability e of a fresh draw, in [0, 1).
        :raises ValueError: if num_classes < 2 or flip is outside [0, 1).
        """
        if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
            raise ValueError(noise.bad_num_classes(num_classes))
        if not is_concrete(flip):
            return cls(flip / num_classes + (1 - flip) * jnp.eye(num_classes))
        chance = np.asarray(flip)
        if chance.ndim != 0 or not 0 <= chance < 1:
            raise ValueError(noise.bad_flip(flip))
        return cls(chance / num_classes + (1 - chance) * np.eye(num_classes))

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return jnp.shape(self.matrix)[0]

    def check_value(self, x: ArrayLike) -> None:
        """
        Refuse values that are not class labels.

        :raises TypeError: if x is not of an integer type.
        :raises ValueError: if a label is outside 0..K-1.
        """
        dtype = jnp.result_type(x)
        if not jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(noise.float_under_channel(dtype))
        if is_concrete(x) and np.size(x):
            low, high = np.min(np.asarray(x)), np.max(np.asarray(x))
            if low < 0 or high >= self.num_classes:
                raise ValueError(noise.label_out_of_range(self.num_classes, low, high))

    def draw(self, rng_key: jax.Array, x: ArrayLike) -> jax.Array:
        """One draw of y given x; where jit hid that x or the channel is wrong, no label at all."""
        y, x = super().draw(rng_key, x), jnp.asarray(x)
        valid = (x >= 0) & (x < self.num_classes) & jnp.isfinite(jnp.asarray(self.matrix)).all()
        return jnp.where(valid, y, self.num_classes)

    def _moves_with_data(self) -> bool:
        return True

    def _conditional(self, x: jax.Array, event_dim: int) -> Distribution:
        # A label out of range that only shows inside jit gives NaN, not a neighbour's column.
        columns = jnp.asarray(self.matrix).T.at[x]
        probs = columns.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return dist.Categorical(probs).to_event(event_dim)

    def _spread_exactly(self, fn: Distribution, extra: int) -> Distribution | None:
        if not isinstance(fn, dist.CategoricalProbs | dist.CategoricalLogits):
            return None
        if jnp.shape(fn.probs)[-1] != self.num_classes:
            raise ValueError(noise.other_classes(self.num_classes, jnp.shape(fn.probs)[-1]))
        probs = fn.probs @ jnp.asarray(self.matrix, jnp.result_type(fn.probs)).T
        return dist.Categorical(probs).to_event(extra)


def _is_regular(matrix: jax.Array) -> jax.Array:
    values = jnp.linalg.svd(lax.stop_gradient(matrix), compute_uv=False)
    return values[-1] > _SINGULAR_TOLERANCE * values[0]


def _check_channel(matrix: np.ndarray) -> None:
    if not np.all(np.isfinite(matrix)):
        raise ValueError(noise.channel_not_stochastic("it contains NaN or inf"))
    if np.any(matrix < 0):
        raise ValueError(noise.channel_not_stochastic("it has a negative entry"))
    sums = matrix.sum(0)
    if np.any(np.abs(sums - 1) > _SUM_TOLERANCE):
        reason = f"its columns sum to {sums.round(6).tolist()}"
        raise ValueError(noise.channel_not_stochastic(reason))
    singular_values = np.linalg.svd(matrix, compute_uv=False)
    if singular_values[-1] <= _SINGULAR_TOLERANCE * singular_values[0]:
        raise ValueError(noise.channel_singular(f"{singular_values[-1]:.1e}"))
