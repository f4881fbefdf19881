# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A model, a critic that remembers, and steps of SVI, for the tests of adversarial losses."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import nn

from pyro_spread import (
    AdversarialDivergence,
    two_player,
)

X = torch.linspace(-1.0, 2.0, 12).reshape(6, 2)


def guide(*args, **kwargs):
    pass


def optim(generator=0.1, critic=0.1):
    return two_player(pyro.optim.SGD({"lr": generator}), pyro.optim.SGD({"lr": critic}))


class Recorder(nn.Module):
    """A critic that remembers what it was shown: data first, then draws."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.seen = []

    def forward(self, values, *args, **kwargs):
        copies = {name: value.detach().clone() for name, value in values.items()}
        self.seen.append((copies, args, kwargs, values.arguments))
        total = [v.reshape(*values.batch_shape, -1).sum(-1) for v in values.values()]
        return self.weight * sum(total)

    @property
    def data(self):
        return [seen[0] for seen in self.seen[::2]]

    @property
    def draws(self):
        return [seen[0] for seen in self.seen[1::2]]


def model(x, **kwargs):
    w = pyro.param("w", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Delta(w * z, event_dim=1), obs=x)


def steps(model, *args, count=1, guide=guide, critic=None, **options):
    critic = Recorder() if critic is None else critic
    loss = AdversarialDivergence(critic, **options)
    svi = SVI(model, loss.register(model, guide), optim(), loss)
    return critic, [svi.step(*args) for _ in range(count)]
