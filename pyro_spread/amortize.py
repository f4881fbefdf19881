# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Amortised posteriors in one call: simulate from a model, train a guide, check it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from pyro_spread._amortised_training import train
from pyro_spread._held import mapped
from pyro_spread._rounds import AtObservation, prior_of, simulate_at
from pyro_spread._seeding import seeded
from pyro_spread._svi_training import check_loss, train_by_svi
from pyro_spread._typing import Model
from pyro_spread.amortized_posterior import AmortizedPosterior
from pyro_spread.autoguide.amortized import AutoAmortized
from pyro_spread.infer.joint_contrast_elbo import JointContrastELBO
from pyro_spread.simulate import Simulations, simulate
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
from spread_core.validation import check_seed

__all__ = ["AmortizedPosterior", "amortize"]


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
    seed: int = 0,
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

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_spread import amortize
        >>> def model(x=None):
        ...     theta = pyro.sample("theta", dist.Uniform(-1.0, 1.0))
        ...     pyro.sample("x", dist.Normal(theta, 0.5), obs=x)
        >>> posterior = amortize(model, observed="x", num_simulations=500, max_steps=50)
        >>> posterior.sample(0.3, num_samples=10)["theta"].shape
        torch.Size([10])

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
    :param guide: the guide to train; left out: ``AutoAmortized(model, observed=observed)``. It
        belongs to the posterior then: trained again, it would change that.
    :param loss: a ``JointContrastELBO(divergence=KL(), ...)``, for noise on the data, say, under
        which the guide is then trained by SVI; its table of simulations is filled in.
    :param optim: an optimiser as SVI takes it, with which the guide is then trained by SVI; a
        scheduler goes on at every step. Left out both: a training of its own, all members of the
        ensemble side by side.
    :param validation: the part of the simulations that each member of the ensemble holds out.
    :param patience: epochs without gain on it after which training stops.
    :param max_steps: most gradient steps, in each round.
    :param rounds: how many times to simulate and train.
    :param x_observed: the data that rounds are for: dict from data site to value, or the value
        where there is one site.
    :param ensemble: number of nets, trained side by side, whose densities are averaged.
    :param seed: of all random numbers; the global ones are as before.
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
    check_seed(seed)
    seed = int(seed)
    with seeded(seed):
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
                seed=seed,
                progress_bar=progress_bar,
                **kwargs,
            )
        record: dict[str, Any] = {}

        def fit(table: Simulations, number: int) -> AutoAmortized:
            options = validation, patience, max_steps, seed + number, progress_bar, by_svi
            record.update(_fit(guide, table, *options))
            return guide

        truncated = None
        if rounds == 1:
            fit(simulations, 0)
        else:
            at = observed_values(x_observed, data_sites, simulations)
            prior = prior_of(model, guide, at, args, kwargs)
            truncated = TruncatedPrior(prior)
            simulations, each = in_rounds(
                simulations,
                numbers,
                torch.randint(2**31 - 1, (rounds,)).tolist(),
                truncated,
                lambda table, number: AtObservation(fit(table, number), prior),
                lambda latents, seed: simulate_at(
                    latents, data_sites, model, args, kwargs, seed, progress_bar
                ),
            )
            record["rounds"] = each
    return AmortizedPosterior(model, guide, simulations, record, args, kwargs, truncated)


def _fit(
    guide: AutoAmortized,
    table: Simulations,
    validation: float,
    patience: int,
    max_steps: int | None,
    seed: int,
    progress_bar: bool,
    by_svi: Any,
) -> dict[str, Any]:
    """Train the guide on a table; a record of the training."""
    found = prepared(guide, table)
    params: dict[str, Any] = {guide.standardisation_name: mapped(guide.tensor, found.fitted)}
    for group in guide.context.groups:
        nets = guide.initial_nets(found.fitted, group)
        if "linear" in nets:
            nets["linear"] = guide.tensor(found.starts[group.key]).expand_as(nets["linear"])
        params[guide.params_name(group)] = nets
    params |= {name: guide.initial_embeddings() for name in guide.learned_names}
    rows = folds(found.valid, guide.ensemble, validation, seed)
    settings = Settings(rows[0].shape[1], elements_of(found.rows), patience, max_steps)
    data = {key: tuple(map(guide.tensor, parts)) for key, parts in found.rows.items()}
    with tqdm(total=settings.total, disable=not progress_bar) as bar:

        def report(epoch: int, loss: float) -> None:
            bar.set_postfix_str(f"held-out loss {loss:.3f}", refresh=False)
            bar.update(min(settings.steps, settings.total - bar.n))

        if by_svi is None:
            params, record = train(guide, params, data, rows, settings, report)
        else:  # one fold: the densities of an ensemble are trained as one
            tables = table.take(rows[0][0]), table.take(rows[1][0])
            options = {"settings": settings, "report": report, **by_svi}
            params, record = train_by_svi(guide.model, guide, params, tables, **options)
    guide.set_params(params)
    return record | told(guide.context, found.fitted)
