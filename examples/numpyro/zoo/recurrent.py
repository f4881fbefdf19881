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

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import linen as nn
from jax import lax, random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO
from parts import Dense, adam, fit, mean_bound, no_guide
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main


class PixelGRU(nn.Module):
    """A step of the GRU for every pixel of a square image, in reading order."""

    num_pixels: int
    hidden_dim: int

    def setup(self):
        self.width = round(self.num_pixels**0.5)
        self.cell = nn.GRUCell(self.hidden_dim)
        self.gru = nn.RNN(self.cell)
        self.output = Dense(NUM_LEVELS)
        rows, columns = np.divmod(np.arange(self.num_pixels), self.width)
        self.where = np.concatenate([np.eye(self.width)[rows], np.eye(self.width)[columns]], -1)

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


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    num_pixels, width = data.num_pixels, round(data.num_pixels**0.5)
    net = PixelGRU(num_pixels, settings.hidden_dim)

    def model(x):
        logits = flax_module("net", net, input_shape=x.shape)(x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x)

    fit_key, draw_key, test_key = random.split(random.key(settings.seed), 3)
    svi = SVI(model, no_guide, adam(settings), Trace_ELBO())
    state, seconds = fit(fit_key, settings, svi, data.train_counts.astype(np.int32))

    @jax.jit
    def sample(rng_key, params):
        """Pixel after pixel, each given those before it."""

        def fill(carry, pixel):
            hidden, padded = carry
            variables = {"params": params["net$params"]}
            hidden, logits = net.apply(variables, hidden, padded, pixel, method="step")
            level = random.categorical(random.fold_in(rng_key, pixel), logits)
            return (hidden, padded.at[:, width + pixel].set(level)), None

        hidden = jnp.zeros((settings.num_samples, settings.hidden_dim))
        padded = jnp.zeros((settings.num_samples, width + num_pixels), jnp.int32)
        (_, padded), _ = lax.scan(fill, (hidden, padded), jnp.arange(num_pixels))
        return padded[:, width:]

    test = data.test_counts.astype(np.int32)
    return Trained(
        samples=np.asarray(sample(draw_key, svi.get_params(state))) / MAX_COUNT,
        seconds=seconds,
        log_likelihood=mean_bound(test_key, svi, state, test, num_draws=1),
    )


if __name__ == "__main__":
    main("numpyro", "recurrent", train)
