# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Some of the programs in Pyro: the same models, word for word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from programs_data import Program
from pyro.distributions import transforms
from pyro.infer.reparam import TransformReparam

import pyro_spread as spread

torch.set_num_threads(1)


def eight_schools(J, sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("J", J):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, torch.as_tensor(sigma)), obs=y)


def eight_schools_noncentred(J, sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("J", J):
        with pyro.poutine.reparam(config={"theta": TransformReparam()}):
            standard = dist.Normal(torch.tensor(0.0), 1.0)
            moved = dist.TransformedDistribution(standard, transforms.AffineTransform(mu, tau))
            theta = pyro.sample("theta", moved)
        pyro.sample("obs", dist.Normal(theta, torch.as_tensor(sigma)), obs=y)


def baseball(at_bats, hits=None):
    loc = pyro.sample("loc", dist.Normal(-1.0, 1.0))
    scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(1.0)))
    with pyro.plate("num_players", at_bats.shape[0]):
        alpha = pyro.sample("alpha", dist.Normal(loc, scale))
        pyro.sample("obs", dist.Binomial(torch.as_tensor(at_bats), logits=alpha), obs=hits)


#: The programs that are here.
MODELS = {
    "eight_schools": eight_schools,
    "eight_schools_noncentred": eight_schools_noncentred,
    "baseball": baseball,
}


def amortize(program: Program, num_simulations: int, seed: int) -> Any:
    """The default of ``pyro_spread``."""
    return spread.amortize(
        MODELS[program.model], *program.args, observed=program.observed,
        num_simulations=num_simulations, seed=seed, progress_bar=False,
    )  # fmt: skip


def as_data(data: np.ndarray) -> Any:
    return torch.as_tensor(data)
