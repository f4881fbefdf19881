# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A training program in Pyro that can be killed and started again."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import nn

from pyro_spread import (
    AdversarialDivergence,
    GaussianNoise,
    ImplicitDistribution,
    JSPi,
    PriorContrastELBO,
    concat_sites,
    load_checkpoint,
    save_checkpoint,
    two_player,
)


def gan():
    """Both nets with batch normalisation, one with dropout; both players with all they can have."""
    decoder = nn.Sequential(
        nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 2)
    )
    critic = nn.Sequential(nn.LazyLinear(8), nn.BatchNorm1d(8), nn.ReLU(), nn.LazyLinear(1))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(decoder(z), event_dim=1), obs=x)

    def guide(x):
        pass

    decay = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": 0.99}
    optim = two_player(
        pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.99}),
        pyro.optim.ExponentialLR(decay, {"clip_norm": 1.0}),
        discriminator_steps=2,
        ema=0.9,
    )
    noise = {"x": GaussianNoise(0.3)}
    loss = AdversarialDivergence(concat_sites(critic, "x"), JSPi(0.5), noise=noise)
    return SVI(model, loss.register(model, guide), optim, loss)


def contrast():
    """An annealed contrast ELBO whose params start at random, in double precision."""
    critic = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(1)).double()

    def push(loc, eps):
        return loc + eps + 0.1 * eps**2

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            scale = pyro.param("scale", x.new_ones(()), constraint=dist.constraints.positive)
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("weight", lambda: torch.randn(2, 2, dtype=x.dtype))
        with pyro.plate("data", len(x)):
            base = dist.Normal(x.new_zeros(2), 1.0).to_event(1)
            implicit = ImplicitDistribution(
                lambda eps: push(x @ weight, eps), base.expand(x.shape[:1]), (2,)
            )
            pyro.sample("z", implicit)

    optim = two_player(pyro.optim.Adam({"lr": 1e-2}), pyro.optim.RMSprop({"lr": 1e-2}))
    loss = PriorContrastELBO(concat_sites(critic, "z"), annealing=40, num_moment_draws=16)
    return SVI(model, loss.register(model, guide), optim, loss)


def batch(kind):
    """Drawn from all random states that a checkpoint keeps."""
    x = torch.randn(16, 2) + random.random() + float(np.random.normal())
    return x.double() if kind == "contrast" else x


def train(kind, directory, steps, every, progress):
    """
    The whole program: it goes on where the newest checkpoint is, if there is one.

    :param progress: called after every step.
    """
    pyro.set_rng_seed(1)
    svi = {"gan": gan, "contrast": contrast}[kind]()
    try:
        start = load_checkpoint(directory, svi, torch.ones(16, 2).to(batch(kind).dtype)).step
    except FileNotFoundError:
        pyro.set_rng_seed(2)
        start = 0
    for step in range(start, steps):
        svi.step(batch(kind))
        svi.optim.step()
        progress(step)
        if (step + 1) % every == 0 or step + 1 == steps:
            save_checkpoint(directory, svi, step + 1, metadata={"kind": kind})


KINDS = ("gan", "contrast")
