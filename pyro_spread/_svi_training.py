# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Train an amortised guide on a table under an unmodified SVI, with early stopping."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.optim.lr_scheduler import PyroLRScheduler

from pyro_spread import _parents
from pyro_spread._held import mapped
from pyro_spread._typing import Args, Kwargs, Model
from pyro_spread.divergences import KL
from pyro_spread.infer.joint_contrast_elbo import JointContrastELBO
from spread_analysis.simulations import Simulations
from spread_core.amortized.training import Best, Settings
from spread_core.messages import amortized as messages
from spread_core.noise.moving import check_scale_is_fixed


def check_loss(loss: Any) -> JointContrastELBO:
    """
    The loss to train with.

    :param loss: the user's; None for that of neural posterior estimation.
    :raises TypeError: if it is another one.
    :raises ValueError: if it trains a critic, which a table cannot, or its noise moves.
    """
    if loss is None:
        return JointContrastELBO(divergence=KL(), vectorize_particles=True)
    if not isinstance(loss, JointContrastELBO):
        raise TypeError(messages.other_loss(loss))
    if loss.discriminator is not None:
        raise ValueError(messages.loss_with_critic())
    check_scale_is_fixed(loss.noise)
    return loss


def optimiser(settings: Settings) -> pyro.optim.PyroOptim:
    """
    Adam with clipped gradients, and a learning rate that goes down with every step of its own.

    :param settings: of the optimisation.
    """
    options = {
        "optimizer": torch.optim.Adam,
        "optim_args": {"lr": 1.0},
        "lr_lambda": lambda step: settings.rate(step, math.cos, min),
    }
    return pyro.optim.LambdaLR(options, {"clip_value": settings.clip})


def train_by_svi(
    model: Model,
    guide: Any,
    start: Mapping[str, Any],
    tables: tuple[Simulations, Simulations],
    loss: JointContrastELBO,
    optim: Any,
    settings: Settings,
    report: Callable[[int, float], None],
    args: Args,
    kwargs: Kwargs,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Train a guide; kept are the params of the epoch with the least held-out loss.

    :param model: the model.
    :param guide: the guide, set up.
    :param start: its params at the start.
    :param tables: simulations to train on, and held out.
    :param loss: the loss, whatever its table.
    :param optim: an optimiser as SVI takes it; None for Adam, its gradients clipped. A scheduler
        goes on at every step.
    :param settings: of the optimisation.
    :param report: is told the number of every epoch and the held-out loss.
    :param args: positional arguments of the model.
    :param kwargs: its keyword arguments.
    :return: the params, and a record: epochs, losses held out at the start and at the end.
    :raises ValueError: if the held-out loss was never finite.
    """
    train, held = tables
    optim = optimiser(settings) if optim is None else optim
    guide = copy.deepcopy(guide)  # one that has been called in a store takes things out of it
    of_train, of_held = loss.on_table(train, settings.batch_size), loss.on_table(held, len(held))
    for each in (of_train, of_held):  # one by one where rows do not keep apart, which is said
        each.vectorize_particles = True
    store = pyro.get_param_store()
    with store.scope(store.get_state()):  # the guide's params stay out of the user's
        guide.set_params(start)
        _parents.drop_foreign_params(guide)
        svi = SVI(model, guide, optim, of_train)
        kept, done = _copied(guide), 0
        best = Best.of_one(of_held.loss(model, guide, *args, **kwargs), settings.patience)
        while done * settings.steps < settings.total and not best.is_done:
            for _ in range(settings.steps):
                svi.step(*args, **kwargs)
                if isinstance(optim, PyroLRScheduler):
                    optim.step()
            if best.gains(of_held.loss(model, guide, *args, **kwargs)):
                kept = _copied(guide)
            done += 1
            report(done, best.loss)
    best.check(guide.context.groups)
    return kept, best.record(done)


def _copied(guide: Any) -> dict[str, Any]:
    found: dict[str, Any] = mapped(_copy, guide.params())
    return found


def _copy(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.detach().clone()
