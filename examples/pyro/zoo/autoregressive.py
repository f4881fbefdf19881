# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Autoregressive models: fully visible sigmoid belief net and MADE
================================================================

log p(x) = sum_i log p(x_i | x_1, ..., x_{i-1}), exactly, and without latents. The belief net (Frey,
Hinton, Dayan 1996) has one logistic unit per pixel, which looks at those before it; here it tosses
16 coins. MADE (Germain et al. 2015) has hidden layers whose masks keep the order, and gives each of
the 17 levels a probability of its own. Masked layers and MADE are Pyro's.

    python examples/pyro/zoo/autoregressive.py --output zoo-autoregressive
"""

from __future__ import annotations

import functools

import pyro.distributions as dist
import torch
from parts import start, train_pixels
from pyro.nn import AutoRegressiveNN, MaskedLinear
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main
from torch import nn


class BeliefNet(nn.Module):
    """Logistic regression of every pixel on those before it."""

    def __init__(self, num_pixels: int) -> None:
        super().__init__()
        before = torch.ones(num_pixels, num_pixels).tril(-1)
        self.net = MaskedLinear(num_pixels, num_pixels, before)

    def forward(self, x: torch.Tensor) -> dist.TorchDistribution:
        return dist.Binomial(MAX_COUNT, logits=self.net(x / MAX_COUNT)).to_event(1)


class MADE(nn.Module):
    """MADE: hidden layers, for any distribution of 17 levels."""

    def __init__(self, num_pixels: int, hidden_dim: int) -> None:
        super().__init__()
        self.net = AutoRegressiveNN(
            num_pixels,
            [max(hidden_dim, num_pixels)] * 2,  # Pyro's masks need as many units as inputs
            param_dims=[NUM_LEVELS],
            permutation=torch.arange(num_pixels),
        )

    def forward(self, x: torch.Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=self.net(x / MAX_COUNT).mT).to_event(1)


@torch.no_grad()
def sample(net: nn.Module, num_images: int, num_pixels: int) -> torch.Tensor:
    """Pixel after pixel, each given those before it."""
    x = torch.zeros(num_images, num_pixels)
    for pixel in range(num_pixels):
        x[:, pixel] = net(x).sample()[:, pixel].to(x)
    return x


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    num_pixels = data.num_pixels
    net = BeliefNet(num_pixels) if row == "fvsbn" else MADE(num_pixels, settings.hidden_dim)
    draw = functools.partial(sample, net)
    return train_pixels(data, settings, net, weight_decay=0.1, draw=draw)


if __name__ == "__main__":
    main("pyro", "autoregressive", train)
