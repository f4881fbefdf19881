# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Row LSTM
========

An LSTM that goes down the image row by row (van den Oord, Kalchbrenner, Kavukcuoglu 2016): the
state at a pixel comes from those at the three pixels above it, and from the pixels before it in its
own row by convolutions. So there is one step for each row and not for each pixel. log p(x) is
exact.

    python examples/numpyro/zoo/row_lstm.py --output zoo-row-lstm
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from parts import Dense, like_torch, train_pixels
from pixel_cnn import masked_conv
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main

NUM_LAYERS = 2
Conv = functools.partial(nn.Conv, kernel_init=like_torch)


class RowCell(nn.RNNCellBase):
    """The step from one row to the next, given what the row itself says."""

    channels: int

    @nn.compact
    def __call__(self, carry, row):
        cell, hidden = carry
        # A convolution, written out: those of the library are slow inside of a loop (parts.fit).
        padded = jnp.pad(hidden, ((0, 0), (1, 1), (0, 0)))
        above = jnp.concatenate([padded[:, :-2], hidden, padded[:, 2:]], -1)
        gates = row + Dense(4 * self.channels)(above)
        write, forget, read, new = jnp.split(gates, 4, -1)
        cell = nn.sigmoid(forget + 1) * cell + nn.sigmoid(write) * jnp.tanh(new)
        hidden = nn.sigmoid(read) * jnp.tanh(cell)
        return (cell, hidden), hidden

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        zeros = jnp.zeros((*input_shape[:-1], self.channels))
        return zeros, zeros

    @property
    def num_feature_axes(self):
        return 2  # columns and channels


class RowLSTMs(nn.Module):
    """Logits of the 17 levels of every pixel."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, num_pixels = self.hidden_dim // 4, x.shape[-1]
        width = round(num_pixels**0.5)
        grid = (x / MAX_COUNT).reshape(-1, width, width, 1)
        grid = jnp.concatenate([grid, jnp.ones_like(grid)], -1)
        features = masked_conv(2, channels, 7, sees_itself=False)(grid)
        for _ in range(NUM_LAYERS):
            # A pixel's features are those of the pixels before it: it may see its own.
            left = [(0, 0), (1, 0)]
            rows = Conv(4 * channels, (1, 2), padding=left)(features)
            features = features + nn.RNN(RowCell(channels))(rows)
        logits = Dense(NUM_LEVELS)(nn.relu(Dense(channels)(features)))
        return logits.reshape(-1, num_pixels, NUM_LEVELS)


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    return train_pixels(data, settings, RowLSTMs(settings.hidden_dim))


if __name__ == "__main__":
    main("numpyro", "row_lstm", train)
