# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
PixelCNN: masked convolutions
=============================

Convolutions of which the kernel is masked, so that they reach only pixels that come before in
reading order (van den Oord, Kalchbrenner, Kavukcuoglu 2016). The first layer does not see the pixel
itself, the others do. log p(x) is exact. As in the paper there are pixels that the net does not
see: of the rows above, those far to the right.

    python examples/pyro/zoo/pixel_cnn.py --output zoo-pixel-cnn
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from parts import start, train_pixels
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main
from torch import nn

NUM_LAYERS = 4


class MaskedConv(nn.Conv2d):
    """A convolution of the places before each one in reading order, and of that itself or not."""

    def __init__(self, num_inputs: int, num_outputs: int, size: int, sees_itself: bool) -> None:
        super().__init__(num_inputs, num_outputs, size, padding=size // 2)
        seen = torch.arange(size**2) < size**2 // 2 + sees_itself
        self.register_buffer("mask", seen.reshape(size, size).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class MaskedConvs(nn.Module):
    """Logits of what is at each place of a square grid, given the features of those before it."""

    def __init__(self, num_features: int, channels: int, num_levels: int) -> None:
        super().__init__()
        self.first = MaskedConv(num_features + 1, channels, 7, sees_itself=False)
        self.layers = nn.ModuleList(
            MaskedConv(channels, channels, 3, sees_itself=True) for _ in range(NUM_LAYERS)
        )
        self.output = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, num_levels, 1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From shape (N, number of places, features) to (N, number of places, levels)."""
        width = round(features.shape[1] ** 0.5)
        grid = features.mT.unflatten(-1, (width, width))
        # Padding is zero, and so is paper: ones tell where the image ends.
        x = self.first(torch.cat([grid, torch.ones_like(grid[:, :1])], 1))
        for layer in self.layers:
            x = x + layer(x.relu())
        return self.output(x).flatten(2).mT


class PixelCNN(nn.Module):
    """A distribution over its 17 levels for every pixel."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.net = MaskedConvs(1, hidden_dim // 4, NUM_LEVELS)

    def forward(self, x: torch.Tensor) -> dist.TorchDistribution:
        logits = self.net(x.unsqueeze(-1) / MAX_COUNT)
        return dist.Categorical(logits=logits).to_event(1)


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    return train_pixels(data, settings, PixelCNN(settings.hidden_dim))


if __name__ == "__main__":
    main("pyro", "pixel_cnn", train)
