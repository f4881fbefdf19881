# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
VQ-VAE: codes out of a book, with an autoregressive prior
=========================================================

The encoder gives a small grid of vectors, each of which is replaced by the nearest one of a learned
book, so that an image becomes a grid of whole numbers c (van den Oord, Vinyals, Kavukcuoglu 2017).
These are an ordinary discrete latent, and the guide is a point, q(c | x) = 1. The gradient passes
straight through the replacement, and two penalties pull vectors and book towards each other. Then
masked convolutions, those of ``pixel_cnn.py``, learn the distribution of the codes.

The number in the table is a lower bound for each image: as log p(x) = log sum_c p(c) p(x | c), it
is not below the term of the one code that the encoder gives, log p(c) + log p(x | c), penalties
not included.

    python examples/numpyro/zoo/vq_vae.py --output zoo-vq-vae
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import linen as nn
from jax import lax, random
from numpyro import handlers
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Predictive, TraceGraph_ELBO
from numpyro.infer.svi import SVIState
from parts import CHUNK, adam, autoregressive_svi, draw_pixels, fit, like_torch, mean_bound
from pixel_cnn import MaskedConvs
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main

NUM_CODES, CODE_DIM = 32, 8
COMMITMENT = 0.25
LARGEST_GRID = 8
Conv = functools.partial(nn.Conv, kernel_init=like_torch)
Double = functools.partial(nn.ConvTranspose, strides=(2, 2), kernel_init=like_torch)


class Encoder(nn.Module):
    """From images to a grid of vectors, halved until it is small; shape (N, places, CODE_DIM)."""

    channels: int
    halvings: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = round(x.shape[-1] ** 0.5)
        images = (x / MAX_COUNT).reshape(-1, width, width, 1)
        for _ in range(self.halvings):
            images = nn.relu(Conv(self.channels, (4, 4), strides=2, padding=1)(images))
        images = nn.relu(Conv(self.channels, (3, 3))(images))
        return Conv(CODE_DIM, (1, 1))(images).reshape(len(x), -1, CODE_DIM)


class Decoder(nn.Module):
    """Back to logits of the pixels, shape (N, number of pixels)."""

    channels: int
    halvings: int

    @nn.compact
    def __call__(self, vectors: jax.Array) -> jax.Array:
        grid = round(vectors.shape[1] ** 0.5)
        images = vectors.reshape(-1, grid, grid, CODE_DIM)
        images = nn.relu(Conv(self.channels, (3, 3))(images))
        for _ in range(self.halvings):
            images = nn.relu(Double(self.channels, (4, 4))(images))
        return Conv(1, (3, 3))(images).reshape(len(vectors), -1)


class Prior(nn.Module):
    """Logits of the codes of an image, of each given those before it."""

    channels: int

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(codes.astype(jnp.int32), NUM_CODES)
        return MaskedConvs(self.channels, NUM_CODES)(one_hot)


class VQVAE:
    """Model and guide of images and their codes."""

    def __init__(self, rng_key: jax.Array, num_pixels: int, channels: int) -> None:
        width = round(num_pixels**0.5)
        halvings = max(1, math.ceil(math.log2(width / LARGEST_GRID)))
        self.num_codes = (width // 2**halvings) ** 2  # of an image
        self.encoder_net = Encoder(channels, halvings)
        self.decoder_net = Decoder(channels, halvings)
        self.first_book = random.normal(rng_key, (NUM_CODES, CODE_DIM))
        # While the codes are learned, all are equally likely.
        logits = jnp.zeros((self.num_codes, NUM_CODES))
        self.uniform = dist.Categorical(logits=logits).to_event(1)

    def encode(self, x):
        return flax_module("encoder", self.encoder_net, input_shape=x.shape)(x)

    def book(self):
        return numpyro.param("book", self.first_book)

    def nearest(self, x):
        """The codes of images, shape (N, num_codes)."""
        return jnp.square(self.encode(x)[..., None, :] - self.book()).sum(-1).argmin(-1)

    def model(self, x, num_images=0, learns=True):
        decoder = flax_module(
            "decoder", self.decoder_net, input_shape=(1, self.num_codes, CODE_DIM)
        )
        with numpyro.plate("data", num_images if x is None else len(x)):
            vectors = self.book()[numpyro.sample("codes", self.uniform)]
            if learns and x is not None:
                given = self.encode(x)
                to_codes = (vectors - lax.stop_gradient(given)) ** 2
                to_vectors = (given - lax.stop_gradient(vectors)) ** 2
                numpyro.factor("pull", -(to_codes + COMMITMENT * to_vectors).sum((-2, -1)))
                # Straight through: the value is the book's, the gradient goes to the encoder.
                vectors = given + lax.stop_gradient(vectors - given)
            pixels = dist.Binomial(MAX_COUNT, logits=decoder(vectors)).to_event(1)
            numpyro.sample("x", pixels, obs=x)

    def guide(self, x, learns=True):
        with numpyro.plate("data", len(x)):
            numpyro.sample("codes", dist.Delta(self.nearest(x), event_dim=1))


def given_codes(rng_key: jax.Array, vq: VQVAE, svi: SVI, state: SVIState, x: np.ndarray) -> float:
    """Mean log p(x | c) at the codes of the images, nats: the bound, without a prior."""
    bound = mean_bound(rng_key, svi, state, x, num_draws=1, learns=False)
    return bound + vq.num_codes * math.log(NUM_CODES)


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    keys = random.split(random.key(settings.seed), 6)
    book_key, fit_key, prior_key, codes_key, draw_key, test_key = keys
    channels = settings.hidden_dim // 4
    vq = VQVAE(book_key, data.num_pixels, channels)
    # Trace_ELBO, but at home with discrete latents; with a point as guide they are the same.
    svi = SVI(vq.model, vq.guide, adam(settings), TraceGraph_ELBO())
    state, seconds = fit(fit_key, settings, svi, data.train_counts, in_one_program=False)
    of_images = given_codes(test_key, vq, svi, state, data.test_counts)

    prior = Prior(channels)
    params = svi.get_params(state)
    encoded = jax.jit(handlers.substitute(vq.nearest, data=params))

    def codes(x):
        starts = range(0, len(x), CHUNK)
        return np.concatenate([encoded(x[start : start + CHUNK]) for start in starts])

    svi = autoregressive_svi(settings, prior, weight_decay=0.1)
    train_codes = codes(data.train_counts)
    state, more = fit(prior_key, settings, svi, train_codes, in_one_program=False)
    of_codes = mean_bound(test_key, svi, state, codes(data.test_counts), num_draws=1)

    variables = {"params": svi.get_params(state)["net$params"]}
    drawn = draw_pixels(codes_key, prior, variables, settings.num_samples, vq.num_codes)
    decoded = handlers.condition(vq.model, data={"codes": drawn})
    predictive = Predictive(decoded, params=params, num_samples=1)
    samples = predictive(draw_key, None, settings.num_samples)["x"][0]
    return Trained(
        samples=np.asarray(samples) / MAX_COUNT,
        seconds=seconds + more,
        log_likelihood=of_images + of_codes,
    )


if __name__ == "__main__":
    main("numpyro", "vq_vae", train)
