# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Runs that a checkpoint must keep, by name: optimisers, schedules, modules, guards."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pyro_checkpointed
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_spread import (
    AutoAmortized,
    AutoImplicit,
    GaussianNoise,
    JointContrastELBO,
    PriorContrastELBO,
    SpreadELBO,
    concat_sites,
    finite_guard,
)

X = torch.linspace(-1.0, 2.0, 8)


def simple(x):
    loc = pyro.param("loc", lambda: torch.randn(()))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def latent(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def no_guide(x):
    pass


def adam(**options):
    return pyro.optim.Adam({"lr": 0.1, **options})


def plain():
    return SVI(simple, no_guide, adam(amsgrad=True), Trace_ELBO())


def scheduled(name, **options):
    def build():
        decay = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1, "momentum": 0.9}}
        return SVI(simple, no_guide, getattr(pyro.optim, name)({**decay, **options}), Trace_ELBO())

    return build


def autoguide():
    # Loc and scale start at random, and the guide is made at its first call.
    init = pyro.infer.autoguide.init_to_sample
    return SVI(latent, AutoNormal(latent, init_loc_fn=init), adam(), Trace_ELBO())


def implicit_guide():
    guide = AutoImplicit(latent, noise_dim=2, hidden=(4,), init_samples=8)
    critic = concat_sites(nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(1)), "_auto_latent")
    return SVI(latent, guide, adam(), PriorContrastELBO(critic, annealing=6, num_moment_draws=8))


def amortised_guide():
    guide = AutoAmortized(latent, hidden=(4,), num_components=2, init_samples=8)
    return SVI(latent, guide, adam(), Trace_ELBO())


def joint():
    def local(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def encoder(x):
        w = pyro.param("w", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(w * x, 1.0))

    critic = concat_sites(nn.LazyLinear(1), "x", "z")
    return SVI(local, encoder, adam(), JointContrastELBO(critic))


class Decoder(PyroModule):
    """Params of all kinds, half precision among them, and buffers of all kinds."""

    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.softplus_positive)
        self.net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.low = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x):
        self.calls += 1
        shift = self.low.float().sum() + self.frozen.detach().sum() * self.calls
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = self.net(z[:, None])[:, 0] + 1e-3 * shift
            pyro.sample("x", dist.Normal(loc, self.scale), obs=x)


def modules():
    # The one that is frozen does not start where that of the saved run did.
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(())), 1.0))

    return SVI(Decoder(), guide, adam(), Trace_ELBO())


def spread():
    net = nn.Linear(1, 2)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(net(z), event_dim=1), obs=x[:, None].expand(-1, 2))

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = pyro.param("q", torch.zeros(1)).expand(len(x), 1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True)
    return SVI(model, guide, adam(), SpreadELBO({"x": GaussianNoise(0.3)}, elbo))


def baseline():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        p = pyro.param("p", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x)):
            infer = {"baseline": {"use_decaying_avg_baseline": True}}
            pyro.sample("z", dist.Bernoulli(p), infer=infer)

    return SVI(model, guide, adam(), TraceGraph_ELBO())


RUNS = {
    "Adam": plain,
    "stepped schedule": scheduled("MultiStepLR", milestones=[1, 3]),
    "plateau": scheduled("ReduceLROnPlateau", mode="min"),
    "one cycle": scheduled("OneCycleLR", max_lr=0.2, total_steps=50),
    "restarts": scheduled("CosineAnnealingWarmRestarts", T_0=2),
    "lambda": scheduled("LambdaLR", lr_lambda=lambda epoch: 0.9**epoch),
    "autoguide": autoguide,
    "AutoImplicit": implicit_guide,
    "AutoAmortized": amortised_guide,
    "joint": joint,
    "modules": modules,
    "spread particles": spread,
    "baseline": baseline,
    "compiled": lambda: SVI(simple, no_guide, adam(), JitTrace_ELBO()),
    "two players": pyro_checkpointed.gan,
    "annealed contrast": pyro_checkpointed.contrast,
    "under guard": lambda: finite_guard(pyro_checkpointed.gan(), "reduce", recover_after=2),
}


def data(name):
    if name in ("two players", "under guard"):
        return torch.ones(16, 2) * X[:1]
    return torch.ones(4, 2).double() if name == "annealed contrast" else X


def start(name):
    pyro.clear_param_store()
    return RUNS[name]()


def go(svi, name, steps):
    for _ in range(steps):
        loss = svi.step(data(name) + random.random() + float(np.random.normal()))
        if hasattr(svi.optim, "step"):
            svi.optim.step(*([loss] if name == "plateau" else []))
