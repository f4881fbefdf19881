# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Amortised posteriors in one call: simulate from a model, train a guide, check it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from tqdm.auto import tqdm

from numpyro_spread._amortised_training import train
from numpyro_spread._typing import Model, RngKey
from numpyro_spread.autoguide.amortized import AutoAmortized
from numpyro_spread.simulate import Simulations, simulate
from spread_core.amortized.training import Settings, folds, regressions
from spread_core.messages import amortized as messages

__all__ = ["AmortizedPosterior", "amortize"]


def amortize(
    model: Model,
    *args: Any,
    observed: str | Sequence[str] | None = None,
    num_simulations: int | None = None,
    simulations: Simulations | None = None,
    guide: AutoAmortized | None = None,
    validation: float = 0.1,
    patience: int = 8,
    max_steps: int | None = None,
    ensemble: int = 5,
    seed: int | RngKey = 0,
    progress_bar: bool = True,
    **kwargs: Any,
) -> AmortizedPosterior:
    r"""
    Turn a model into a posterior for any data: simulate, train, keep what is best held out.

    This is neural posterior estimation [1]: a conditional density over all latents is fitted to
    simulated latents and data by maximum likelihood. The model needs no density.

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

    :param model: the model, which can be run forward.
    :param args: positional arguments of the model; data among them may be None.
    :param observed: name or names of the data sites; left out: those that the model observes at
        these arguments.
    :param num_simulations: how often to run the model.
    :param simulations: runs made before, instead.
    :param guide: the guide to train; left out: ``AutoAmortized(model, observed=observed)``.
    :param validation: the part of the simulations that each member of the ensemble holds out.
    :param patience: epochs without gain on it after which training stops.
    :param max_steps: most gradient steps.
    :param ensemble: number of nets, trained side by side, whose densities are averaged.
    :param seed: of all random numbers, or a random key.
    :param progress_bar: whether to show one.
    :param kwargs: keyword arguments of the model.
    :return: the posterior.
    :raises ValueError: if there is nothing to train on, or a site of the model is missing in the
        table; the message names it.
    """
    if (num_simulations is None) == (simulations is None):
        raise ValueError(messages.what_to_train_on())
    key = random.key(seed) if isinstance(seed, int | np.integer) else seed
    simulate_key, setup_key, fold_key, net_key, train_key, own_key = random.split(key, 6)
    if guide is None:
        guide = AutoAmortized(model, observed=observed, ensemble=ensemble)
    data_sites = guide.data_sites(*args, **kwargs)
    if simulations is None:
        assert num_simulations is not None
        simulations = simulate(
            model, num_simulations, *args, observed=data_sites, seed=simulate_key, **kwargs
        )
    latents, data, masks = guide.columns_of(simulations)
    valid = simulations.valid
    good = np.flatnonzero(valid)
    fitted = guide.fitted(*jax.tree.map(lambda x: x[good], (latents, data, masks)))
    prepared = guide.prepare(fitted, latents, data, masks)
    groups = guide.context.groups
    starts = regressions(
        {k: tuple(x[good] for x in parts) for k, parts in prepared.items()},
        groups,
        {group.key: guide.ends(group, fitted) for group in groups},
        {group.key: guide.size_before(group) for group in groups},
    )
    params: dict[str, Any] = {guide.standardisation_name: jax.tree.map(jnp.asarray, fitted)}
    for group, group_key in zip(groups, random.split(net_key, len(groups)), strict=True):
        nets = guide.initial_nets(group_key, fitted, group)
        nets["linear"] = jnp.broadcast_to(starts[group.key], nets["linear"].shape)
        params[guide.params_name(group)] = nets
    fold_seed = int(random.randint(fold_key, (), 0, 2**31 - 1))
    rows = folds(valid, guide.ensemble, validation, fold_seed)
    settings = Settings(rows[0].shape[1], patience, max_steps)
    with tqdm(total=settings.total, disable=not progress_bar) as bar:

        def report(epoch: int, loss: float) -> None:
            bar.set_postfix_str(f"held-out loss {loss:.3f}", refresh=False)
            bar.update(min(settings.steps, settings.total - bar.n))

        params, record = train(train_key, guide, params, prepared, rows, settings, report)
    return AmortizedPosterior(model, guide, params, simulations, own_key, record, args, kwargs)


class AmortizedPosterior:
    """
    The posterior of a model for any data, as :func:`amortize` returns it.

    Arguments of its methods are the model's, with the data in their place.

    :param model: the model.
    :param guide: the trained guide.
    :param params: its params.
    :param simulations: what it was trained on.
    :param rng_key: from which methods split theirs.
    :param record: of the training: epochs, held-out losses.
    """

    def __init__(
        self,
        model: Model,
        guide: AutoAmortized,
        params: Mapping[str, Any],
        simulations: Simulations,
        rng_key: RngKey,
        record: Mapping[str, Any],
        args: Any = (),
        kwargs: Any = None,
    ) -> None:
        self.model, self.guide, self.params = model, guide, dict(params)
        self.simulations, self.record = simulations, dict(record)
        self._rng_key, self._args, self._kwargs = rng_key, args, dict(kwargs or {})

    def sample(
        self, *args: Any, num_samples: int = 1000, rng_key: RngKey | None = None, **kwargs: Any
    ) -> dict[str, jax.Array]:
        """
        Draws of all latents given the data.

        :param args: positional arguments of the model.
        :param num_samples: number of draws.
        :param rng_key: random key; left out, it is split from the one that ``seed`` made.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to values of shape (num_samples,) + shape of the site.
        :raises ValueError: if the model observes no data at these arguments.
        """
        return self.guide.sample_posterior(
            self._key(rng_key), self.params, *args, sample_shape=(num_samples,), **kwargs
        )

    def log_prob(self, values: Mapping[str, Any], *args: Any, **kwargs: Any) -> jax.Array:
        """
        Log density of latents given the data, in nats; normalised.

        :param values: dict from every latent to values of shape (num_samples,) + shape of the
            site.
        :param args: positional arguments of the model.
        :param kwargs: keyword arguments of the model.
        :return: of shape (num_samples,).
        """
        return self.guide.log_prob(self.params, values, *args, **kwargs)

    def _key(self, rng_key: RngKey | None) -> RngKey:
        if rng_key is not None:
            return rng_key
        self._rng_key, key = random.split(self._rng_key)
        return key
