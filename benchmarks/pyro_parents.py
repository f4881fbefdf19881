# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Programs of the kinds of Pyro's own examples, for stock ELBOs with and without ``compiled``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from harness import Contestant
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from pyro_spread import compiled


class Regression(PyroModule):
    """
    Bayesian linear regression, as in Pyro's first tutorial on it: 170 rows, three predictors.

    Weights and bias have priors, the noise's scale too.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](features, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, features]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor) -> None:
        scale = pyro.sample("scale", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)


def regression(smoke: bool, seed: int, is_compiled: bool) -> Contestant:
    """The regression, under ``AutoDiagonalNormal``."""
    torch.manual_seed(seed)
    x = torch.randn(10 if smoke else 170, 3)
    y = x.sum(-1) + torch.randn(len(x))
    model = Regression(3)
    # An autoguide's params are named by its class, and contestants share one param store.
    autoguide = type(f"Guide{is_compiled}", (AutoDiagonalNormal,), {})
    return _contestant(model, autoguide(model), (x, y), is_compiled)


class Markov(nn.Module):
    """
    A deep Markov model and its guide, in the manner of Pyro's example ``dmm``.

    Latents follow a gated transition, each emits notes that sound or do not; the guide runs a GRU
    from the end. Sequences of several lengths are masked.
    """

    def __init__(self, notes: int, latent: int, hidden: int, name: str) -> None:
        super().__init__()
        self.latent, self.name = latent, name
        self.emission = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, notes),
        )  # fmt: skip
        self.gate = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, latent), nn.Sigmoid()
        )
        self.proposal = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, latent)
        )
        self.steady, self.log_scale = nn.Linear(latent, latent), nn.Linear(latent, latent)
        self.gru = nn.GRU(notes, hidden, batch_first=True)
        self.combine, self.loc = nn.Linear(latent, hidden), nn.Linear(hidden, latent)
        self.guide_log_scale = nn.Linear(hidden, latent)

    def transition(self, z: Tensor) -> dist.TorchDistribution:
        gate, proposal = self.gate(z), self.proposal(z)
        loc = (1 - gate) * self.steady(z) + gate * proposal
        scale = nn.functional.softplus(self.log_scale(proposal.relu()))
        return dist.Normal(loc, scale)

    def model(self, notes: Tensor, mask: Tensor, weight: Tensor) -> None:
        pyro.module(self.name, self)
        batch, steps, _ = notes.shape
        z = notes.new_zeros(batch, self.latent)
        with pyro.plate("sequences", batch):
            for t in pyro.markov(range(steps)):
                heard = mask[:, t]
                with poutine.scale(scale=weight):
                    z = pyro.sample(f"z_{t}", self.transition(z).mask(heard[:, None]).to_event(1))
                sounds = dist.Bernoulli(logits=self.emission(z)).mask(heard[:, None]).to_event(1)
                pyro.sample(f"x_{t}", sounds, obs=notes[:, t])

    def guide(self, notes: Tensor, mask: Tensor, weight: Tensor) -> None:
        pyro.module(self.name, self)
        batch, steps, _ = notes.shape
        seen = self.gru(notes.flip(1))[0].flip(1)
        z = notes.new_zeros(batch, self.latent)
        with pyro.plate("sequences", batch):
            for t in pyro.markov(range(steps)):
                joined = 0.5 * (self.combine(z).tanh() + seen[:, t])
                scale = nn.functional.softplus(self.guide_log_scale(joined))
                fn = dist.Normal(self.loc(joined), scale).mask(mask[:, t, None]).to_event(1)
                with poutine.scale(scale=weight):
                    z = pyro.sample(f"z_{t}", fn)


def markov(smoke: bool, seed: int, is_compiled: bool) -> Contestant:
    """The deep Markov model: 20 sequences of up to 10 chords, 88 notes, 32 latents."""
    torch.manual_seed(seed)
    batch, steps = (3, 2) if smoke else (20, 10)
    dmm = Markov(88, 32, 16 if smoke else 64, f"dmm{is_compiled}")
    notes = torch.bernoulli(torch.full((batch, steps, 88), 0.05))
    lengths = torch.randint(1, steps + 1, (batch, 1))
    mask = torch.arange(steps) < lengths
    return _contestant(dmm.model, dmm.guide, (notes, mask, torch.tensor(0.5)), is_compiled)


def _contestant(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Tensor, ...],
    is_compiled: bool,
) -> Contestant:
    """``SVI.step`` with ``pyro.optim.Adam``."""
    loss = compiled(Trace_ELBO()) if is_compiled else Trace_ELBO()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)

    def run(steps: int) -> float:
        for _ in range(steps):
            value = svi.step(*args)
        return value

    return run


PROGRAMS: dict[str, Callable[[bool, int, bool], Contestant]] = {
    "regression": regression,
    "dmm": markov,
}


def contestants(name: str, smoke: bool, seed: int) -> dict[str, Contestant]:
    """A program under ``SVI.step``, as it is and compiled."""
    make = functools.partial(PROGRAMS[name], smoke, seed)
    return {"stock-svi": make(False), "stock-svi-compiled": make(True)}
