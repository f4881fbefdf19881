# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Train an amortised guide on a table, all members of its ensemble side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random

from numpyro_spread.autoguide.amortized import AutoAmortized
from spread_core.amortized import judged
from spread_core.amortized.training import Best, Settings

Tree = Any


def optimiser(settings: Settings) -> optax.GradientTransformation:
    """
    Adam with clipped gradients, and a learning rate that goes down.

    :param settings: of the optimisation.
    """
    return optax.chain(
        optax.clip(settings.clip),
        optax.adam(lambda step: settings.rate(step, jnp.cos, jnp.minimum)),
    )


def train(
    rng_key: jax.Array,
    guide: AutoAmortized,
    params: dict[str, Any],
    prepared: Tree,
    rows: tuple[np.ndarray, np.ndarray],
    settings: Settings,
    report: Callable[[int, float], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Train the nets of a guide; the standardisation stays.

    :param rng_key: random key, of the order of the rows.
    :param guide: the guide, set up.
    :param params: its params at the start.
    :param prepared: the simulations, as :meth:`AutoAmortized.prepare` gives them.
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
    nets = {key: params[name] for name, key in keys.items()}
    data = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), dict(prepared))
    train_rows, held_rows = map(jnp.asarray, rows)
    members, flows = len(train_rows), guide.flow_places(guide.context.groups)
    size, steps = settings.batch_size, settings.steps

    # The rows are arguments of what is compiled: as constants they would be folded, slowly.
    def log_probs(nets: Tree, data: Tree, chosen: jax.Array) -> dict[str, jax.Array]:
        batch = jax.tree.map(lambda x: x[chosen], data)
        named = {name: nets[key] for name, key in keys.items()}
        found = guide.log_probs(named | fixed, batch)
        return {key: x.reshape(*x.shape[:3], -1).mean(-1) for key, x in found.items()}

    def losses(nets: Tree, data: Tree, chosen: jax.Array) -> dict[str, jax.Array]:
        return {key: -x.mean(-1) for key, x in log_probs(nets, data, chosen).items()}

    def total(nets: Tree, data: Tree, chosen: jax.Array) -> jax.Array:
        return jnp.stack([x.sum() for x in losses(nets, data, chosen).values()]).sum()

    optim = optimiser(settings)

    @jax.jit
    def epoch(carry: Tree, data: Tree, key: jax.Array) -> tuple[Tree, dict[str, jax.Array]]:
        shuffled = jax.vmap(random.permutation)(random.split(key, members), train_rows)
        batches = shuffled[:, : steps * size].reshape(members, steps, size).swapaxes(0, 1)

        def step(carry: Tree, chosen: jax.Array) -> tuple[Tree, None]:
            nets, mean, state, number = carry
            gradient = jax.grad(total)(nets, data, chosen)
            updates, state = optim.update(gradient, state, nets)
            nets = optax.apply_updates(nets, updates)
            weight = jnp.minimum(settings.average, (1 + number) / (10 + number))
            mean = optax.incremental_update(nets, mean, 1 - weight)
            return (nets, mean, state, number + 1), None

        carry, _ = lax.scan(step, carry, batches)
        return carry, losses(carry[1], data, held_rows)

    @jax.jit
    def gains(nets: Tree, first: Tree, data: Tree) -> dict[str, jax.Array]:
        after, before = (log_probs(each, data, held_rows) for each in (nets, first))
        return {key: after[key] - before[key] for key in after}

    kept = first = nets
    start = jax.device_get(jax.jit(losses)(nets, data, held_rows))
    best = Best(judged.judged(start, whole), settings.patience)
    carry = (nets, nets, optim.init(nets), jnp.zeros((), jnp.int32))
    done = 0
    while done * steps < settings.total and not best.is_done:
        carry, held = epoch(carry, data, random.fold_in(rng_key, done))
        better = best.update(judged.judged(jax.device_get(held), whole))
        kept = judged.kept(better, carry[1], kept, whole, flows)
        done += 1
        report(done, best.loss)
    best.check(guide.context.groups)
    if any(map(guide.has_mixtures, guide.context.groups)):
        worth = judged.worth_it(jax.device_get(gains(kept, first, data)), whole, flows)
        kept = judged.kept(worth, kept, first, whole, flows)
    trained = fixed | {name: kept[key] for name, key in keys.items()}
    return trained, best.record(done)
