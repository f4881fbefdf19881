# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Discrepancies between two sets of samples, whose large kernel matrices are computed in blocks.

    >>> from numpyro_spread import GaussianKernel
    >>> x, y = jnp.zeros((2, 1)), jnp.ones((2, 1))
    >>> round(float(mmd2_unbiased(GaussianKernel(1.0), x, y)), 4)
    0.7869
    >>> float(energy_distance(x, y))
    2.0
    >>> float(sliced_wasserstein(x, jnp.full((3, 1), 2.0), jnp.ones((1, 1))))
    4.0
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from spread_core.math import two_sample
from spread_core.math.two_sample import sliced_wasserstein

__all__ = ["energy_distance", "mmd2_unbiased", "sliced_wasserstein"]


def _sum_of_blocks(
    rows: Callable[..., jax.Array], size: int, samples: jax.Array, weights: jax.Array
) -> jax.Array:
    count = -(-len(samples) // size)
    padding = count * size - len(samples)
    parts = jnp.pad(samples, ((0, padding), (0, 0)), mode="edge").reshape(count, size, -1)
    weights = jnp.pad(weights, (0, padding)).reshape(count, size)
    starts = size * jnp.arange(count)
    # A scan does not merge the two computations of a block, so that nothing need prevent it.
    again = jax.checkpoint(rows, prevent_cse=False)
    return lax.map(lambda block: again(*block), (starts, parts, weights)).sum()


mmd2_unbiased = partial(two_sample.mmd2_unbiased, sum_of_blocks=_sum_of_blocks)
energy_distance = partial(two_sample.energy_distance, sum_of_blocks=_sum_of_blocks)
