# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Row LSTM
========

An LSTM that goes down the image row by row (van den Oord, Kalchbrenner, Kavukcuoglu 2016): the
state at a pixel comes from those at the three pixels above it, and from the pixels before it in its
own row by convolutions. So there is one step for each row and not for each pixel. log p(x) is
exact.

    python examples/pyro/zoo/row_lstm.py --output zoo-row-lstm
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from parts import start, train_pixels
from pixel_cnn import MaskedConv
from studies.zoo import MAX_COUNT, NUM_LEVELS, Settings, Trained, ZooData, main
from torch import nn

NUM_LAYERS = 2


class RowLSTM(nn.Module):
    """One layer, from features of shape (N, channels, rows, columns) to others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # A pixel's features are those of the pixels before it: it may see its own.
        self.inputs = nn.Conv2d(channels, 4 * channels, (1, 2))
        self.state = nn.Conv1d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inputs = self.inputs(nn.functional.pad(x, (1, 0)))
        hidden = cell = torch.zeros_like(x[:, :, 0])
        rows = []
        for row in inputs.unbind(2):
            write, forget, read, new = (row + self.state(hidden)).chunk(4, 1)
            cell = (forget + 1).sigmoid() * cell + write.sigmoid() * new.tanh()
            hidden = read.sigmoid() * cell.tanh()
            rows.append(hidden)
        return torch.stack(rows, 2)


class RowLSTMs(nn.Module):
    """A distribution over its 17 levels for every pixel."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        channels = hidden_dim // 4
        self.first = MaskedConv(2, channels, 7, sees_itself=False)
        self.layers = nn.ModuleList(RowLSTM(channels) for _ in range(NUM_LAYERS))
        self.output = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, NUM_LEVELS, 1)
        )

    def forward(self, x: torch.Tensor) -> dist.TorchDistribution:
        width = round(x.shape[-1] ** 0.5)
        grid = (x / MAX_COUNT).reshape(-1, 1, width, width)
        features = self.first(torch.cat([grid, torch.ones_like(grid)], 1))
        for layer in self.layers:
            features = features + layer(features)
        return dist.Categorical(logits=self.output(features).flatten(2).mT).to_event(1)


def train(row: str, data: ZooData, settings: Settings) -> Trained:
    start(settings)
    return train_pixels(data, settings, RowLSTMs(settings.hidden_dim))


if __name__ == "__main__":
    main("pyro", "row_lstm", train)
