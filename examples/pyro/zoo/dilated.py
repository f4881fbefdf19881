# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Dilated causal convolutions
===========================

The image is read as a sequence of pixels by convolutions that look back 1, 2, 4, ... pixels, with
gates, until they reach the first one (WaveNet, van den Oord et al. 2016). Like the recurrent net
they know where they are; unlike it they see all pixels at once in training. log p(x) is exact.

    python examples/pyro/zoo/dilated.py --output zoo-dilated
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from parts import start, train_pixels
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main, pixel_places
from torch import nn


class GatedLayer(nn.Module):
    """What one layer passes on to the next, and to the output."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.gate = nn.Conv1d(channels, 2 * channels, 2, dilation=dilation)
        self.residual = nn.Conv1d(channels, channels, 1)
        self.skip = nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, gate = self.gate(nn.functional.pad(x, (self.dilation, 0))).chunk(2, 1)
        z = value.tanh() * gate.sigmoid()
        return x + self.residual(z), self.skip(z)


class DilatedNet(nn.Module):
    """A distribution over its 17 levels for every pixel."""

    def __init__(self, num_pixels: int, hidden_dim: int) -> None:
        super().__init__()
        channels = hidden_dim // 4
        self.register_buffer("where", torch.as_tensor(pixel_places(num_pixels)).T)
        self.first = nn.Conv1d(1 + len(self.where), channels, 1)
        # Sums of 1, 2, 4, ... reach back to the first pixel.
        num_layers = (num_pixels - 1).bit_length()
        self.layers = nn.ModuleList(GatedLayer(channels, 2**i) for i in range(num_layers))
        self.output = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(channels, channels, 1),
            nn.ReLU(),
            nn.Conv1d(channels, NUM_LEVELS, 1),
        )

    def forward(self, x: torch.Tensor) -> dist.TorchDistribution:
        before = nn.functional.pad(x, (1, 0))[:, None, :-1] / MAX_COUNT
        state = self.first(torch.cat([before, self.where.expand(len(x), -1, -1)], 1))
        skips = []
        for layer in self.layers:
            state, skip = layer(state)
            skips.append(skip)
        return dist.Categorical(logits=self.output(sum(skips)).mT).to_event(1)


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    return train_pixels(data, settings, DilatedNet(data.num_pixels, settings.hidden_dim))


if __name__ == "__main__":
    main("pyro", "dilated", train)
