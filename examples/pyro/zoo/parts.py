# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the files of the zoo share in Pyro: nets, and the loop around ``svi.step``."""

from __future__ import annotations

import time

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam, LambdaLR
from torch import nn

from pyro_spread import two_player
from pyro_spread.ratio import MLPCritic
from spread_analysis.zoo import batches, learning_rate_factor


def mlp(num_inputs, hidden_dim, num_outputs):
    """Two hidden layers: the generator, the decoder and the encoder of all systems."""
    return nn.Sequential(
        nn.Linear(num_inputs, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, num_outputs),
    )


def critic_net(settings):
    """As wide and deep as the generator."""
    return MLPCritic([settings.hidden_dim] * 2)


def adam(settings, learning_rate=None, num_steps=None, b1=0.9):
    """Adam whose rate falls to zero over the second half of the steps."""
    steps = num_steps or settings.num_steps
    return LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": learning_rate or settings.learning_rate, "betas": (b1, 0.999)},
            "lr_lambda": lambda step: learning_rate_factor(step / steps),
        }
    )


def adversaries(settings, critic_steps=1):
    """One optimiser for both players of a game; steady rates, little momentum."""
    options = {"lr": settings.learning_rate, "betas": (0.5, 0.999)}
    return two_player(Adam(options), Adam(options), critic_steps)


def start(settings):
    """Forget the system before, so that every file gives the same alone and after others."""
    pyro.clear_param_store()
    pyro.set_rng_seed(settings.seed)


def no_guide(*args):
    """For models without latents, or those that are trained by comparing draws."""


def fit(settings, model, guide, optim, loss, *data, num_steps=None):
    """Train on mini-batches of the arrays in ``data``; returns the SVI and the seconds."""
    began = time.perf_counter()
    tensors = [torch.as_tensor(array) for array in data]
    svi = SVI(model, guide, optim, loss)
    steps = num_steps or settings.num_steps
    for chunk in batches(len(tensors[0]), settings.batch_size, steps, settings.seed):
        for batch in torch.as_tensor(chunk):
            svi.step(*(tensor[batch] for tensor in tensors))
            if isinstance(optim, pyro.optim.PyroLRScheduler):
                optim.step()
    return svi, time.perf_counter() - began


def standard_normal(num):
    return dist.Normal(torch.zeros(num), 1.0).to_event(1)


def as_samples(images):
    """For the judge: pixels of a deterministic output may leave [0, 1] and are clipped."""
    return np.clip(images.detach().cpu().numpy(), 0.0, 1.0)
