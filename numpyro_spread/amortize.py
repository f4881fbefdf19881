# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Amortised posteriors in one call: simulate from a model, train a guide, check it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from tqdm.auto import tqdm

from numpyro_spread._amortised_training import train
from numpyro_spread._rounds import AtObservation, prior_of, simulate_at
from numpyro_spread._svi_training import check_loss, train_by_svi
from numpyro_spread._typing import Model, RngKey
from numpyro_spread.amortized_posterior import AmortizedPosterior
from numpyro_spread.autoguide.amortized import AutoAmortized
from numpyro_spread.infer.joint_contrast_elbo import JointContrastELBO
from numpyro_spread.simulate import Simulations, key_of, simulate
from spread_analysis.rounds import check_rounds, in_rounds
from spread_core.amortized.context import told
from spread_core.amortized.training import (
    Settings,
    check_numbers,
    check_observed,
    elements_of,
    folds,
    prepared,
)
from spread_core.amortized.truncation import TruncatedPrior, observed_values
from spread_core.messages import amortized as messages

__all__ = ["AmortizedPosterior", "amortize"]

_MOST = 2**31 - 1


def amortize(
    model: Model,
    *args: Any,
    observed: str | Sequence[str] | None = None,
    num_simulations: int | None = None,
    simulations: Simulations | None = None,
    guide: AutoAmortized | None = None,
    loss: JointContrastELBO | None = None,
    optim: Any = None,
    validation: float = 0.1,
    patience: int = 8,
    max_steps: int | None = None,
    rounds: int = 1,
    x_observed: Any = None,
    ensemble: int = 5,
    seed: int | RngKey = 0,
    progress_bar: bool = True,
    **kwargs: Any,
) -> AmortizedPosterior:
    r"""
    Turn a model into a posterior for any data: simulate, train, keep what is best held out.

    This is neural posterior estimation [1]: a conditional density over all latents is fitted to
    simulated latents and data by maximum likelihood. The model needs no density.

    With ``rounds`` the posterior is for one observation, ``x_observed``, from fewer simulations:
    after the first round latents come from the prior where the last round's posterior has its mass
    (all but 1e-4 of it), and all simulations that lie there train the next [2].

        >>> import numpyro, numpyro.distributions as dist
        >>> from numpyro_spread import amortize
        >>> def model(x=None):
        ...     theta = numpyro.sample("theta", dist.Uniform(-1.0, 1.0))
        ...     numpyro.sample("x", dist.Normal(theta, 0.5), obs=x)
        >>> posterior = amortize(model, observed="x", num_simulations=500, max_steps=50)
        >>> posterior.sample(0.3, num_samples=10)["theta"].shape
        (10,)

    **References**

    [1] `Fast epsilon-free Inference of Simulation Models with Bayesian Conditional Density
    Estimation`, George Papamakarios, Iain Murray, https://arxiv.org/abs/1605.06376

    [2] `Truncated proposals for scalable and hassle-free simulation-based inference`, Michael
    Deistler, Pedro J. Goncalves, Jakob H. Macke, https://arxiv.org/abs/2210.04815

    :param model: the model, which can be run forward.
    :param args: positional arguments of the model; data among them may be None.
    :param observed: name or names of the data sites; left out: those that the model observes at
        these arguments.
    :param num_simulations: how often to run the model, in all rounds together.
    :param simulations: runs made before, instead.
    :param guide: the guide to train; left out: ``AutoAmortized(model, observed=observed)``.
    :param loss: a ``JointContrastELBO(divergence=KL(), ...)``, for noise on the data, say, under
        which the guide is then trained by SVI; its table of simulations is filled in.
    :param optim: an optimiser as SVI takes it, with which the guide is then trained by SVI. Left
        out both: a training of its own, all members of the ensemble side by side.
    :param validation: the part of the simulations that each member of the ensemble holds out.
    :param patience: epochs without gain on it after which training stops.
    :param max_steps: most gradient steps, in each round.
    :param rounds: how many times to simulate and train.
    :param x_observed: the data that rounds are for: dict from data site to value, or the value
        where there is one site.
    :param ensemble: number of nets, trained side by side, whose densities are averaged.
    :param seed: of all random numbers, or a random key.
    :param progress_bar: whether to show one.
    :param kwargs: keyword arguments of the model.
    :return: the posterior.
    :raises TypeError: if guide or loss are of another kind.
    :raises ValueError: if there is nothing to train on, or a site of the model is missing in the
        table; if rounds lack an observation, or their latents depend on data that are drawn before
        them; the message names the site.
    """
    if guide is not None and not isinstance(guide, AutoAmortized):
        raise TypeError(messages.other_guide(guide))
    by_svi: Any = None
    if loss is not None or optim is not None:
        by_svi = {"loss": check_loss(loss), "optim": optim, "args": args, "kwargs": kwargs}
    check_numbers(patience, max_steps)
    numbers = check_rounds(num_simulations, simulations, rounds, x_observed)
    simulate_key, fold_key, net_key, train_key, own_key = random.split(key_of(seed), 5)
    if guide is None:
        guide = AutoAmortized(model, observed=observed, ensemble=ensemble)
    data_sites = guide.data_sites(*args, **kwargs)
    check_observed(observed, data_sites)
    if rounds > 1 and (names := guide.masked_latents(*args, **kwargs)):
        raise ValueError(messages.masked_rounds(names))
    if simulations is None:
        simulations = simulate(
            model,
            numbers[0],
            *args,
            observed=data_sites,
            seed=simulate_key,
            progress_bar=progress_bar,
            **kwargs,
        )
    result: list[Any] = []

    def fit(table: Simulations, number: int) -> dict[str, Any]:
        keys = [random.fold_in(k, number) if number else k for k in (fold_key, net_key, train_key)]
        result[:] = _fit(keys, guide, table, validation, patience, max_steps, progress_bar, by_svi)
        return result[0]

    truncated = None
    if rounds == 1:
        fit(simulations, 0)
    else:
        at = observed_values(x_observed, data_sites, simulations)
        prior = prior_of(model, guide, at, args, kwargs)
        truncated = TruncatedPrior(prior)
        seeds = [
            int(n) for n in random.randint(random.fold_in(simulate_key, 1), (rounds,), 0, _MOST)
        ]
        simulations, each = in_rounds(
            simulations,
            numbers,
            seeds,
            truncated,
            lambda table, number: AtObservation(guide, fit(table, number), prior),
            lambda latents, seed: simulate_at(
                latents, data_sites, model, args, kwargs, random.key(seed), progress_bar
            ),
        )
        result[1] = result[1] | {"rounds": each}
    params, record = result
    return AmortizedPosterior(
        model, guide, params, simulations, own_key, record, args, kwargs, truncated
    )


def _fit(
    keys: Sequence[RngKey],
    guide: AutoAmortized,
    table: Simulations,
    validation: float,
    patience: int,
    max_steps: int | None,
    progress_bar: bool,
    by_svi: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The params of the guide, trained on a table, and a record of the training."""
    fold_key, net_key, train_key = keys
    found = prepared(guide, table)
    groups = guide.context.groups
    params: dict[str, Any] = {guide.standardisation_name: jax.tree.map(jnp.asarray, found.fitted)}
    for group, group_key in zip(groups, random.split(net_key, len(groups)), strict=True):
        nets = guide.initial_nets(group_key, found.fitted, group)
        if "linear" in nets:
            nets["linear"] = jnp.broadcast_to(found.starts[group.key], nets["linear"].shape)
        params[guide.params_name(group)] = nets
    params |= {n: guide.initial_embeddings(random.fold_in(net_key, 1)) for n in guide.learned_names}
    fold_seed = int(random.randint(fold_key, (), 0, _MOST))
    rows = folds(found.valid, guide.ensemble, validation, fold_seed)
    settings = Settings(rows[0].shape[1], elements_of(found.rows), patience, max_steps)
    with tqdm(total=settings.total, disable=not progress_bar) as bar:

        def report(epoch: int, loss: float) -> None:
            bar.set_postfix_str(f"held-out loss {loss:.3f}", refresh=False)
            bar.update(min(settings.steps, settings.total - bar.n))

        if by_svi is None:
            params, record = train(train_key, guide, params, found.rows, rows, settings, report)
        else:  # one fold: the densities of an ensemble are trained as one
            tables = table.take(rows[0][0]), table.take(rows[1][0])
            options = {"settings": settings, "report": report, **by_svi}
            params, record = train_by_svi(train_key, guide.model, guide, params, tables, **options)
    return params, record | told(guide.context, found.fitted)
