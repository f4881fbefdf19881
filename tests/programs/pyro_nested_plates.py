# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Data of rows and columns, pairs of them with latents, and what compares two runs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_spread import ImplicitDistribution, concat_sites
from pyro_spread.ratio import MLPCritic

ROWS, COLS = 7, 3


def points(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DATA = points(ROWS, COLS), points(ROWS, seed=1), points(ROWS, COLS, seed=2)


def scale():
    return pyro.param("A", lambda: torch.tensor([0.7, -0.2, 1.1]))


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5, abs=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, grad in one[1].items():
        torch.testing.assert_close(grad, other[1][name], rtol=1e-4, atol=1e-6)


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, values, *args, **kwargs):
        self.seen.append(values)
        return sum(value.reshape(*values.batch_shape, -1).sum(-1) for value in values.values())


def pair_model(x, z, e):
    with pyro.plate("rows", ROWS, dim=-2):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("cols", COLS, dim=-1):
            b = pyro.sample("b", dist.Normal(a.expand(ROWS, COLS), 1.0))
            pyro.sample("x", dist.Normal(b * scale(), 1.0), obs=x)


def pair_guide(x, z, e, density=False):
    m = pyro.param("m", lambda: torch.tensor([0.4, -0.3, 0.2]))
    with pyro.plate("rows", ROWS, dim=-2):
        pyro.sample("a", dist.Normal(m.sum(), 1.0))
        with pyro.plate("cols", COLS, dim=-1):
            noise = dist.Normal(torch.zeros(ROWS, COLS), 1.0)
            pyro.sample("b", dist.Normal(m * x, 1.0) if density else _implicit(noise, m * x, ()))


def _implicit(noise, shift, event_shape):
    return ImplicitDistribution(lambda eps: eps + shift, noise, event_shape)


def pair_critic():
    torch.manual_seed(5)
    return concat_sites(MLPCritic([8], input_dim=2 * COLS + 1), "x", "a", "b")
