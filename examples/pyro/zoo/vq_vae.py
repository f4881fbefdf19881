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

    python examples/pyro/zoo/vq_vae.py --output zoo-vq-vae
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from parts import CHUNK, adam, autoregressive_svi, draw_counts, draw_pixels, fit, mean_bound, start
from pixel_cnn import MaskedConvs
from pyro import poutine
from pyro.infer import SVI, TraceGraph_ELBO
from studies.zoo import MAX_COUNT, Settings, Trained, ZooData, main
from torch import nn

NUM_CODES, CODE_DIM = 32, 8
COMMITMENT = 0.25
LARGEST_GRID = 8


class Encoder(nn.Module):
    """From images to a grid of vectors, halved until it is small; shape (N, places, CODE_DIM)."""

    def __init__(self, width: int, channels: int, halvings: int) -> None:
        super().__init__()
        self.width = width
        halve = [
            layer
            for step in range(halvings)
            for layer in (nn.Conv2d(channels if step else 1, channels, 4, 2, 1), nn.ReLU())
        ]
        self.net = nn.Sequential(
            *halve,
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, CODE_DIM, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = (x / MAX_COUNT).unflatten(-1, (1, self.width, self.width))
        return self.net(images).flatten(2).mT


class Decoder(nn.Module):
    """Back to logits of the pixels, shape (N, number of pixels)."""

    def __init__(self, grid: int, channels: int, halvings: int) -> None:
        super().__init__()
        self.grid = grid
        double = [
            layer
            for _ in range(halvings)
            for layer in (nn.ConvTranspose2d(channels, channels, 4, 2, 1), nn.ReLU())
        ]
        self.net = nn.Sequential(
            nn.Conv2d(CODE_DIM, channels, 3, padding=1),
            nn.ReLU(),
            *double,
            nn.Conv2d(channels, 1, 3, padding=1),
        )

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.net(vectors.mT.unflatten(-1, (self.grid, self.grid))).flatten(1)


class Prior(nn.Module):
    """The distribution of the codes of an image, of each given those before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = MaskedConvs(NUM_CODES, channels, NUM_CODES)

    def forward(self, codes: torch.Tensor) -> dist.TorchDistribution:
        one_hot = nn.functional.one_hot(codes.long(), NUM_CODES).float()
        return dist.Categorical(logits=self.net(one_hot)).to_event(1)


class VQVAE:
    """Model and guide of images and their codes."""

    def __init__(self, num_pixels: int, channels: int) -> None:
        width = round(num_pixels**0.5)
        halvings = max(1, math.ceil(math.log2(width / LARGEST_GRID)))
        grid = width // 2**halvings
        self.num_codes = grid**2  # of an image
        self.encoder = Encoder(width, channels, halvings)
        self.decoder = Decoder(grid, channels, halvings)
        self.first_book = torch.randn(NUM_CODES, CODE_DIM)
        # While the codes are learned, all are equally likely.
        logits = torch.zeros(self.num_codes, NUM_CODES)
        self.uniform = dist.Categorical(logits=logits).to_event(1)

    def encode(self, x):
        pyro.module("encoder", self.encoder)
        return self.encoder(x)

    def book(self):
        return pyro.param("book", self.first_book)

    @torch.no_grad()
    def nearest(self, x):
        """The codes of images, shape (N, num_codes)."""
        book, chunks = self.book(), x.split(CHUNK)
        return torch.cat([torch.cdist(self.encode(some), book).argmin(-1) for some in chunks])

    def model(self, x, num_images=0, learns=True):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", num_images if x is None else len(x)):
            vectors = self.book()[pyro.sample("codes", self.uniform)]
            if learns and x is not None:
                given = self.encode(x)
                to_codes = (vectors - given.detach()) ** 2
                to_vectors = (given - vectors.detach()) ** 2
                pyro.factor("pull", -(to_codes + COMMITMENT * to_vectors).sum((-2, -1)))
                # Straight through: the value is the book's, the gradient goes to the encoder.
                vectors = given + (vectors - given).detach()
            pixels = dist.Binomial(MAX_COUNT, logits=self.decoder(vectors)).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide(self, x, learns=True):
        with pyro.plate("data", len(x)):
            pyro.sample("codes", dist.Delta(self.nearest(x), event_dim=1))


def given_codes(vq: VQVAE, svi: SVI, x: np.ndarray) -> float:
    """Mean log p(x | c) at the codes of the images, nats: the bound, without a prior."""
    return mean_bound(svi, x, num_draws=1, learns=False) + vq.num_codes * math.log(NUM_CODES)


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    channels = settings.hidden_dim // 4
    vq = VQVAE(data.num_pixels, channels)
    # Trace_ELBO, but at home with discrete latents; with a point as guide they are the same.
    svi = SVI(vq.model, vq.guide, adam(settings), TraceGraph_ELBO())
    seconds = fit(settings, svi, data.train_counts)
    of_images = given_codes(vq, svi, data.test_counts)

    prior = Prior(channels)
    codes, test_codes = (
        vq.nearest(torch.as_tensor(x)) for x in (data.train_counts, data.test_counts)
    )
    svi = autoregressive_svi(settings, prior, weight_decay=0.1)
    seconds += fit(settings, svi, codes)
    drawn = draw_pixels(prior, settings.num_samples, vq.num_codes).long()
    decoded = poutine.condition(vq.model, {"codes": drawn})
    return Trained(
        samples=draw_counts(decoded, None, settings.num_samples),
        seconds=seconds,
        log_likelihood=of_images + mean_bound(svi, test_codes, num_draws=1),
    )


if __name__ == "__main__":
    main("pyro", "vq_vae", train)
