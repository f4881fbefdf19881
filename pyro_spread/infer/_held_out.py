# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Check an adversarial ELBO estimate with a fresh critic, and compute the gap between the two."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pyro.infer import Trace_ELBO
from pyro.util import get_rng_state, set_rng_state
from torch import nn

from pyro_spread.ratio.adapters import SiteValues
from spread_analysis import EvidenceReport
from spread_core.contrast_options import ContrastOptions
from spread_core.losses.contrast_elbo import NUM_NORMALISER_DRAWS


def fresh_copy(module: nn.Module) -> nn.Module:
    """A copy with params as they were before training, in all layers that know how to begin."""
    fresh = copy.deepcopy(module)
    for layer in fresh.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
    return fresh


def judging(loss: Any, options: ContrastOptions, critic: nn.Module | None = None) -> Any:
    """
    A copy of a contrast loss with other options, and with another critic if there is one.

    :param loss: the loss.
    :param options: its options.
    :param critic: its critics, in one module.
    """
    loss = copy.copy(loss)
    loss._stock, loss._one = Trace_ELBO(), Trace_ELBO()
    if critic is not None:
        loss.discriminator = critic
        critics = dict(critic) if isinstance(critic, nn.ModuleDict) else critic
        options = replace(options, critics=critics)
    loss._options = options
    return loss


def normalised(loss: Any) -> Any:
    """A copy of a contrast loss whose critic stands for a normalised density."""
    return judging(loss, replace(loss._options, num_normaliser_draws=NUM_NORMALISER_DRAWS))


def fit_critic(
    critic: nn.Module, loss: Callable[[], torch.Tensor], num_steps: int, learning_rate: float
) -> None:
    """
    Train a critic with Adam.

    :param critic: the module.
    :param loss: what it minimises, at fresh draws.
    :param num_steps: number of steps.
    :param learning_rate: at the first step; it falls linearly to zero.
    """
    params = [param for param in critic.parameters() if param.requires_grad]
    optim = torch.optim.Adam(params, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 1e-2, num_steps)
    for _ in range(num_steps):
        # Nothing but the critic may get a gradient: a head is not to be moved by the next step.
        grads = torch.autograd.grad(loss(), params, allow_unused=True)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optim.step()
        schedule.step()


def compare_estimates(
    reported: Callable[[], float], checked: Sequence[Callable[[], float]], num_draws: int
) -> EvidenceReport:
    """
    The reported estimate and the best of others, over draws that they share.

    :param reported: gives the ELBO estimate as it is reported, at draws of its own.
    :param checked: the same with other critics; they draw the same from the same random state.
    :param num_draws: number of draws.
    """
    values, others = [], []
    for _ in range(num_draws):
        state = get_rng_state()
        values.append(reported())
        after = get_rng_state()
        each = []
        for estimate in checked:
            set_rng_state(state)
            each.append(estimate())
        others.append(each)
        set_rng_state(after)
    return EvidenceReport.from_draws(values, np.transpose(others))


class Silent(nn.Module):
    """A critic that says nothing: the guide is taken for its contrast."""

    def forward(self, values: SiteValues, *args: object, **kwargs: object) -> torch.Tensor:
        """Zeros of the batch shape."""
        first = next(iter(values.values()))
        return first.new_zeros(values.batch_shape)
