# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A recurrent model of pixels
===========================

A GRU reads the image pixel after pixel and gives the next one a distribution over its 17 levels
(van den Oord et al. 2016, in its simplest form). It sees the pixel before, the one above, and where
it is. log p(x) is exact.

    python examples/pyro/zoo/recurrent.py --output zoo-recurrent
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from parts import adam, fit, mean_bound, no_guide, start
from pyro.infer import SVI, Trace_ELBO
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main
from torch import nn


class PixelGRU(nn.Module):
    """A step of the GRU for every pixel of a square image, in reading order."""

    def __init__(self, num_pixels: int, hidden_dim: int) -> None:
        super().__init__()
        self.width = round(num_pixels**0.5)
        self.gru = nn.GRU(2 + 2 * self.width, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, NUM_LEVELS)
        where = torch.eye(self.width)
        rows, columns = where.repeat_interleave(self.width, 0), where.repeat(self.width, 1)
        self.register_buffer("where", torch.cat([rows, columns], -1))

    def inputs(self, before: torch.Tensor, above: torch.Tensor, pixels: slice) -> torch.Tensor:
        seen = torch.stack([before, above], -1) / MAX_COUNT
        where = self.where[pixels].expand(len(seen), -1, -1)
        return torch.cat([seen, where], -1)

    def forward(self, x: torch.Tensor) -> dist.TorchDistribution:
        num_pixels = x.shape[-1]
        padded = nn.functional.pad(x, (self.width, 0))
        before = padded[:, self.width - 1 : -1]
        hidden, _ = self.gru(self.inputs(before, padded[:, :num_pixels], slice(None)))
        return dist.Categorical(logits=self.output(hidden)).to_event(1)

    @torch.no_grad()
    def sample(self, num_images: int, num_pixels: int) -> torch.Tensor:
        padded = torch.zeros(num_images, self.width + num_pixels)
        state = None
        for pixel in range(num_pixels):
            now = self.width + pixel
            before, above = padded[:, now - 1 : now], padded[:, pixel : pixel + 1]
            hidden, state = self.gru(self.inputs(before, above, slice(pixel, pixel + 1)), state)
            level = dist.Categorical(logits=self.output(hidden[:, 0])).sample()
            padded[:, now] = level.to(padded)
        return padded[:, self.width :]


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    net = PixelGRU(data.num_pixels, settings.hidden_dim)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", net(x), obs=x)

    svi = SVI(model, no_guide, adam(settings), Trace_ELBO())
    seconds = fit(settings, svi, data.train_counts)
    return Trained(
        samples=net.sample(settings.num_samples, data.num_pixels).cpu().numpy() / MAX_COUNT,
        seconds=seconds,
        log_likelihood=mean_bound(svi, data.test_counts, num_draws=1),
    )


if __name__ == "__main__":
    main("pyro", "recurrent", train)
