# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Train an amortised guide on a table under an unmodified SVI, with early stopping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax, random
from numpyro.infer import SVI

from numpyro_spread._amortised_training import optimiser
from numpyro_spread._typing import Args, Kwargs, Model, RngKey
from numpyro_spread.divergences import KL
from numpyro_spread.infer.joint_contrast_elbo import JointContrastELBO
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


def train_by_svi(
    rng_key: RngKey,
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

    :param rng_key: random key.
    :param model: the model.
    :param guide: the guide, set up.
    :param start: its params at the start.
    :param tables: simulations to train on, and held out.
    :param loss: the loss, whatever its table.
    :param optim: an optimiser as SVI takes it; None for Adam, its gradients clipped.
    :param settings: of the optimisation.
    :param report: is told the number of every epoch and the held-out loss.
    :param args: positional arguments of the model.
    :param kwargs: its keyword arguments.
    :return: the params, and a record: epochs, losses held out at the start and at the end.
    :raises ValueError: if the held-out loss was never finite.
    """
    train, held = tables
    if optim is None:
        optim = optimiser(settings)
    init_key, eval_key = random.split(rng_key)
    svi = SVI(model, guide, optim, loss.on_table(train, settings.batch_size))
    # SVI.init runs the guide, for which the model need not observe data yet: it gets a row's.
    row = {name: held[name][0] for name in held.observed}
    masks = {name: mask[0] for name, mask in held.masks.items() if name in row}
    first = SVI(model, guide.given(row, masks), optim, loss)
    state = first.init(init_key, *args, init_params=dict(start), **kwargs)
    svi.constrain_fn = first.constrain_fn
    of_held = loss.on_table(held, len(held))

    @jax.jit
    def epoch(state: Any) -> Any:
        def step(state: Any, _: None) -> tuple[Any, None]:
            return svi.update(state, *args, **kwargs)[0], None

        return lax.scan(step, state, None, length=settings.steps)[0]

    @jax.jit
    def held_out(params: Any) -> jax.Array:
        value: jax.Array = of_held.loss(eval_key, params, model, guide, *args, **kwargs)
        return value

    kept = svi.get_params(state)
    best, done = Best.of_one(float(held_out(kept)), settings.patience), 0
    while done * settings.steps < settings.total and not best.is_done:
        state = epoch(state)
        params = svi.get_params(state)
        if best.gains(float(held_out(params))):
            kept = params
        done += 1
        report(done, best.loss)
    best.check(guide.context.groups)
    return dict(kept), best.record(done)
