# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Train an amortised guide on a table, all members of its ensemble side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pyro_spread.autoguide.amortized import AutoAmortized
from spread_core.amortized import judged
from spread_core.amortized.training import Best, Settings

Tree = Any


def train(
    guide: AutoAmortized,
    params: dict[str, Any],
    data: Tree,
    rows: tuple[np.ndarray, np.ndarray],
    settings: Settings,
    report: Callable[[int, float], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Train the nets of a guide; the standardisation stays.

    :param guide: the guide, set up.
    :param params: its params at the start.
    :param data: the simulations, as :meth:`AutoAmortized.prepare` gives them, tensors.
    :param rows: of every member, to train on and to hold out.
    :param settings: of the optimisation.
    :param report: is told the number of every epoch and the held-out loss.
    :return: the params, and a record: epochs, losses held out at the start and at the end.
    :raises ValueError: if a member never had a finite held-out loss.
    """
    fixed = {guide.standardisation_name: params[guide.standardisation_name]}
    keys = {guide.params_name(group): group.key for group in guide.context.groups}
    keys |= {name: name for name in guide.learned_names}
    whole = bool(guide.learned_names)  # which all numbers share
    nets = {
        key: {k: v.detach().clone().requires_grad_() for k, v in params[name].items()}
        for name, key in keys.items()
    }
    train_rows, held_rows = map(torch.as_tensor, rows)
    members, flows = len(train_rows), guide.flow_places(guide.context.groups)
    size, steps = settings.batch_size, settings.steps

    def log_probs(nets: Tree, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = {key: tuple(part[chosen] for part in parts) for key, parts in data.items()}
        found = guide.log_probs({name: nets[key] for name, key in keys.items()} | fixed, batch)
        return {key: x.reshape(*x.shape[:3], -1).mean(-1) for key, x in found.items()}

    def losses(nets: Tree) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = log_probs(nets, held_rows)
        return {key: -x.mean(-1).double().cpu().numpy() for key, x in found.items()}

    def copied(nets: Tree) -> Tree:
        return {key: {k: v.detach().clone() for k, v in own.items()} for key, own in nets.items()}

    leaves = [leaf for own in nets.values() for leaf in own.values()]
    optim = torch.optim.Adam(leaves, lr=1.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optim, lambda step: settings.rate(step, math.cos, min)
    )
    mean, kept, first = copied(nets), copied(nets), copied(nets)
    averages = [leaf for own in mean.values() for leaf in own.values()]
    best = Best(judged.judged(losses(nets), whole), settings.patience)
    number = done = 0
    while done * steps < settings.total and not best.is_done:
        order = torch.stack([torch.randperm(len(own)) for own in train_rows])
        shuffled = train_rows.gather(1, order)
        for chosen in shuffled[:, : steps * size].reshape(members, steps, size).unbind(1):
            optim.zero_grad(set_to_none=True)
            loss = sum(-x.mean(-1).sum() for x in log_probs(nets, chosen).values())
            loss.backward()  # type: ignore[union-attr]
            torch.nn.utils.clip_grad_value_(leaves, settings.clip)
            optim.step()
            schedule.step()
            weight = min(settings.average, (1 + number) / (10 + number))
            with torch.no_grad():
                for average, leaf in zip(averages, leaves, strict=True):
                    average.lerp_(leaf, 1 - weight)
            number += 1
        better = best.update(judged.judged(losses(mean), whole))
        kept = copied(judged.kept(better, mean, kept, whole, flows))
        done += 1
        report(done, best.loss)
    best.check(guide.context.groups)
    if any(map(guide.has_mixtures, guide.context.groups)):
        with torch.no_grad():
            after, before = log_probs(kept, held_rows), log_probs(first, held_rows)
        gains = {key: (after[key] - before[key]).double().cpu().numpy() for key in after}
        kept = judged.kept(judged.worth_it(gains, whole, flows), kept, first, whole, flows)
    trained = fixed | {name: kept[key] for name, key in keys.items()}
    return trained, best.record(done)
