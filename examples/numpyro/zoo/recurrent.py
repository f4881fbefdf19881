# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A recurrent model of pixels
===========================

A GRU reads the image pixel after pixel and gives the next one a distribution over its 17 levels
(van den Oord et al. 2016, in its simplest form). It sees the pixel before, the one above, and where
it is. log p(x) is exact.

    python examples/numpyro/zoo/recurrent.py --output zoo-recurrent
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax, random
from parts import Dense, train_pixels
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main, pixel_places


class PixelGRU(nn.Module):
    """A step of the GRU for every pixel of a square image, in reading order."""

    num_pixels: int
    hidden_dim: int

    def setup(self):
        self.width = round(self.num_pixels**0.5)
        self.cell = nn.GRUCell(self.hidden_dim)
        self.gru = nn.RNN(self.cell)
        self.output = Dense(NUM_LEVELS)
        self.where = pixel_places(self.num_pixels)

    def __call__(self, x):
        """Logits of every pixel given those before it."""
        padded = jnp.pad(x, ((0, 0), (self.width, 0)))
        seen = jnp.stack([padded[:, self.width - 1 : -1], padded[:, : self.num_pixels]], -1)
        where = jnp.broadcast_to(self.where, (len(x), *self.where.shape))
        inputs = jnp.concatenate([seen / MAX_COUNT, where], -1)
        return self.output(self.gru(inputs))

    def step(self, hidden, padded, pixel):
        """The hidden state at a pixel, and its logits; ``padded`` has a row of zeros on top."""
        before, above = padded[:, self.width + pixel - 1], padded[:, pixel]
        where = jnp.broadcast_to(jnp.asarray(self.where)[pixel], (len(padded), 2 * self.width))
        seen = jnp.stack([before, above], -1) / MAX_COUNT
        hidden, _ = self.cell(hidden, jnp.concatenate([seen, where], -1))
        return hidden, self.output(hidden)


@functools.partial(jax.jit, static_argnames=("net", "num_images", "num_pixels"))
def draw(rng_key, net, variables, num_images, num_pixels):
    """Pixel after pixel, with a step of the GRU for each."""

    def fill(carry, pixel):
        hidden, padded = carry
        hidden, logits = net.apply(variables, hidden, padded, pixel, method="step")
        level = random.categorical(random.fold_in(rng_key, pixel), logits)
        return (hidden, padded.at[:, width + pixel].set(level)), None

    width = round(num_pixels**0.5)
    hidden = jnp.zeros((num_images, net.hidden_dim))
    padded = jnp.zeros((num_images, width + num_pixels), jnp.int32)
    (_, padded), _ = lax.scan(fill, (hidden, padded), jnp.arange(num_pixels))
    return padded[:, width:]


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    net = PixelGRU(data.num_pixels, settings.hidden_dim)
    return train_pixels(data, settings, net, draw, in_one_program=True)


if __name__ == "__main__":
    main("numpyro", "recurrent", train)
