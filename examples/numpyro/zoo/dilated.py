# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Dilated causal convolutions
===========================

The image is read as a sequence of pixels by convolutions that look back 1, 2, 4, ... pixels, with
gates, until they reach the first one (WaveNet, van den Oord et al. 2016). Like the recurrent net
they know where they are; unlike it they see all pixels at once in training. log p(x) is exact.

    python examples/numpyro/zoo/dilated.py --output zoo-dilated
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from parts import Dense, like_torch, train_pixels
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main, pixel_places

Conv = functools.partial(nn.Conv, padding="CAUSAL", kernel_init=like_torch)


class DilatedNet(nn.Module):
    """Logits of the 17 levels of every pixel."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, num_pixels = self.hidden_dim // 4, x.shape[-1]
        before = jnp.pad(x, ((0, 0), (1, 0)))[:, :-1, None] / MAX_COUNT
        where = pixel_places(num_pixels)
        where = jnp.broadcast_to(where, (len(x), *where.shape))
        state = Dense(channels)(jnp.concatenate([before, where], -1))
        skips = jnp.zeros_like(state)
        # Sums of 1, 2, 4, ... reach back to the first pixel.
        for i in range((num_pixels - 1).bit_length()):
            gates = Conv(2 * channels, (2,), kernel_dilation=2**i)(state)
            value, gate = jnp.split(gates, 2, -1)
            z = jnp.tanh(value) * nn.sigmoid(gate)
            state = state + Dense(channels)(z)
            skips = skips + Dense(channels)(z)
        return Dense(NUM_LEVELS)(nn.relu(Dense(channels)(nn.relu(skips))))


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    return train_pixels(data, settings, DilatedNet(settings.hidden_dim))


if __name__ == "__main__":
    main("numpyro", "dilated", train)
