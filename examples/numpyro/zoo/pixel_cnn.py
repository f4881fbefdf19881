# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
PixelCNN: masked convolutions
=============================

Convolutions of which the kernel is masked, so that they reach only pixels that come before in
reading order (van den Oord, Kalchbrenner, Kavukcuoglu 2016). The first layer does not see the pixel
itself, the others do. log p(x) is exact. As in the paper there are pixels that the net does not
see: of the rows above, those far to the right.

    python examples/numpyro/zoo/pixel_cnn.py --output zoo-pixel-cnn
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from parts import like_torch, train_pixels
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main

NUM_LAYERS = 4
Conv = functools.partial(nn.Conv, kernel_init=like_torch)


def masked_conv(num_inputs: int, num_outputs: int, size: int, sees_itself: bool) -> nn.Conv:
    """A convolution of the places before each one in reading order, and of that itself or not."""
    seen = np.arange(size**2) < size**2 // 2 + sees_itself
    mask = np.broadcast_to(
        seen.reshape(size, size, 1, 1), (size, size, num_inputs, num_outputs)
    ).astype(np.float32)
    return Conv(num_outputs, (size, size), mask=mask)


class MaskedConvs(nn.Module):
    """Logits of what is at each place of a square grid, given the features of those before it."""

    channels: int
    num_levels: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """From shape (N, number of places, features) to (N, number of places, levels)."""
        num_places, num_features = features.shape[1:]
        width, channels = round(num_places**0.5), self.channels
        # Padding is zero, and so is paper: ones tell where the image ends.
        grid = jnp.concatenate([features, jnp.ones_like(features[..., :1])], -1)
        grid = grid.reshape(-1, width, width, num_features + 1)
        x = masked_conv(num_features + 1, channels, 7, sees_itself=False)(grid)
        for _ in range(NUM_LAYERS):
            x = x + masked_conv(channels, channels, 3, sees_itself=True)(nn.relu(x))
        x = nn.relu(Conv(channels, (1, 1))(nn.relu(x)))
        return Conv(self.num_levels, (1, 1))(x).reshape(-1, num_places, self.num_levels)


class PixelCNN(nn.Module):
    """Logits of the 17 levels of every pixel."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return MaskedConvs(self.hidden_dim // 4, NUM_LEVELS)(x[..., None] / MAX_COUNT)


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    return train_pixels(data, settings, PixelCNN(settings.hidden_dim))


if __name__ == "__main__":
    main("numpyro", "pixel_cnn", train)
