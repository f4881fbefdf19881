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

import pyro.distributions as dist
import torch
from parts import start, train_pixels
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main, pixel_places
from torch import nn


class PixelGRU(nn.Module):
    """A step of the GRU for every pixel of a square image, in reading order."""

    def __init__(self, num_pixels: int, hidden_dim: int) -> None:
        super().__init__()
        self.width = round(num_pixels**0.5)
        self.gru = nn.GRU(2 + 2 * self.width, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, NUM_LEVELS)
        self.register_buffer("where", torch.as_tensor(pixel_places(num_pixels)))

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
    return train_pixels(data, settings, net, draw=net.sample)


if __name__ == "__main__":
    main("pyro", "recurrent", train)
