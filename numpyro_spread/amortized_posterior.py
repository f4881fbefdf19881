# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The posterior of a model for any data: draw, score, correct, check, keep."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.flatten_util import ravel_pytree
from jax.scipy.optimize import minimize
from numpyro.distributions import biject_to
from numpyro.handlers import condition
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density, unconstrain_fn

from numpyro_spread import _checkpoint_state as state
from numpyro_spread._rounds import AtObservation, prior_of, simulate_at
from numpyro_spread._typing import Model, RngKey
from numpyro_spread.autoguide.amortized import AutoAmortized
from numpyro_spread.infer._scan import Unconditioned
from numpyro_spread.simulate import Simulations, simulate
from spread_analysis.amortized import (
    AmortizedPosteriorShared,
    RefinedDraws,
    refined,
    simulations_state,
)
from spread_core.amortized.saved import completed, written
from spread_core.amortized.truncation import Region, TruncatedPrior
from spread_core.caller_warning import warn_user
from spread_core.checkpoint_file import CheckpointReader, write
from spread_core.messages import amortized as messages
from spread_core.validation import check_count

__all__ = ["AmortizedPosterior"]


class AmortizedPosterior(AmortizedPosteriorShared):
    """
    The posterior of a model for any data, as :func:`amortize` returns it.

    Arguments of its methods are the model's, with the data in their place.

    :param model: the model.
    :param guide: the trained guide.
    :param params: its params.
    :param simulations: what it was trained on.
    :param rng_key: from which methods split theirs.
    :param record: of the training: epochs, held-out losses.
    :param args: the model's positional arguments at the simulations.
    :param kwargs: its keyword arguments.
    :param truncation: the prior as rounds have truncated it.
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
        truncation: TruncatedPrior | None = None,
    ) -> None:
        self.model, self.guide, self.params = model, guide, dict(params)
        self.simulations, self.record = simulations, dict(record)
        self.truncation = truncation
        self._rng_key, self._args, self._kwargs = rng_key, tuple(args), dict(kwargs or {})

    def sample(
        self, *args: Any, num_samples: int = 1000, rng_key: RngKey | None = None, **kwargs: Any
    ) -> dict[str, jax.Array]:
        """
        Draws of all latents given the data, inside their supports.

        :param args: positional arguments of the model, with the data in their place.
        :param num_samples: number of draws.
        :param rng_key: random key; left out, it is split from the one that ``seed`` made.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to values of shape (num_samples,) + shape of the site.
        :raises ValueError: if the model observes no data at these arguments.
        """
        check_count("num_samples", num_samples)
        self._warn_if_outside(args, kwargs)
        return self.guide.sample_posterior(
            self._key(rng_key), self.params, *args, sample_shape=(num_samples,), **kwargs
        )

    def log_prob(self, values: Mapping[str, Any], *args: Any, **kwargs: Any) -> jax.Array:
        """
        Log density of latents given the data, in nats; normalised.

        :param values: dict from every latent to values of shape (num_samples,) + shape of the
            site.
        :param args: positional arguments of the model, with the data in their place.
        :param kwargs: keyword arguments of the model.
        :return: of shape (num_samples,).
        :raises ValueError: if a latent is missing, or the model observes no data.
        """
        return self.guide.log_prob(self.params, values, *args, **kwargs)

    def map(
        self, *args: Any, num_samples: int = 1000, rng_key: RngKey | None = None, **kwargs: Any
    ) -> dict[str, jax.Array]:
        """
        The latents at which the posterior's density is largest.

        The best of the draws, moved uphill by BFGS; discrete latents stay.

        :param args: positional arguments of the model, with the data in their place.
        :param num_samples: number of draws.
        :param rng_key: random key; left out, it is split from the one that ``seed`` made.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to its value.
        """
        draws = self.sample(*args, num_samples=num_samples, rng_key=rng_key, **kwargs)
        best = jnp.argmax(self.log_prob(draws, *args, **kwargs))
        top = {name: value[best] for name, value in draws.items()}
        supports = self.guide.supports
        moving = {n: v for n, v in top.items() if not supports[n].is_discrete}
        if not moving:
            return top
        raw = {name: biject_to(supports[name]).inv(value) for name, value in moving.items()}
        flat, back = ravel_pytree(raw)

        def values(flat: jax.Array) -> dict[str, jax.Array]:
            return top | {n: biject_to(supports[n])(u) for n, u in back(flat).items()}

        def objective(flat: jax.Array) -> jax.Array:
            one = jax.tree.map(lambda x: x[None], values(flat))
            return -self.log_prob(one, *args, **kwargs)[0]

        found = minimize(jax.jit(objective), flat, method="BFGS")
        is_better = jnp.isfinite(found.fun) & (found.fun < objective(flat))
        moved = values(jnp.where(is_better, found.x, flat))
        return {name: moved[name] for name in top}

    def refine(
        self,
        *args: Any,
        method: str = "importance",
        num_samples: int = 1000,
        num_proposals: int | None = None,
        num_warmup: int = 500,
        num_chains: int = 4,
        rng_key: RngKey | None = None,
        **kwargs: Any,
    ) -> RefinedDraws:
        """
        Draws corrected by the model's own density, where it has one.

        :param args: positional arguments of the model, with the data in their place.
        :param method: ``"importance"`` resamples draws by Pareto smoothed importance weights (for
            their Pareto k see :class:`RefinedDraws`); ``"nuts"`` starts chains of NUTS from draws.
        :param num_samples: number of draws to return.
        :param num_proposals: draws that are weighted; by default ten times as many.
        :param num_warmup: steps by which each chain adapts.
        :param num_chains: chains of NUTS, run side by side.
        :param rng_key: random key; left out, it is split from the one that ``seed`` made.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to values of shape (num_samples,) + shape of the site.
        :raises ValueError: if a site of the model has no density, or a latent is masked.
        """
        if method not in ("importance", "nuts"):
            raise ValueError(messages.refine_method(method))
        if names := self.guide.masked_latents(*args, **kwargs):
            raise ValueError(messages.masked_latents(names))
        check_count("num_samples", num_samples)
        key, other = random.split(self._key(rng_key))
        check_count("num_chains", num_chains)
        number = 10 * num_samples if num_proposals is None else num_proposals
        check_count("num_proposals", number)
        number = num_chains if method == "nuts" else number
        draws = self.sample(*args, num_samples=number, rng_key=key, **kwargs)
        finite = self._made_finite(args, kwargs)
        model = condition(self.model, data=finite) if finite else self.model
        if method == "nuts":
            options = num_samples, num_warmup, num_chains, other
            return self._chains(model, draws, *options, args, kwargs)

        def log_joint(one: Any) -> jax.Array:
            return log_density(model, args, kwargs, one)[0]

        try:
            of_model = jax.jit(jax.vmap(log_joint))(draws)
        except NotImplementedError as error:
            raise ValueError(messages.no_density(str(error))) from error
        log_weights = np.asarray(of_model - self.log_prob(draws, *args, **kwargs), float)
        seed = int(random.randint(other, (), 0, 2**31 - 1))
        found = refined(draws, log_weights, num_samples, seed, lambda value, rows: value[rows])
        if found.pareto_k is not None and found.pareto_k > 0.7:
            warn_user(messages.bad_tail(found.pareto_k))
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """
        Write the posterior to a folder, as a checkpoint: arrays and JSON, no code.

        :param path: the folder, made if it is not there.
        :return: path of the file.
        :raises TypeError: if an argument of the model cannot be written.
        """
        content = {
            "params": self.params,
            "guide": written(self.guide.options()),
            "structure": self.guide.structure(),
            "simulations": simulations_state(self.simulations),
            "record": self.record,
            "arguments": [list(self._args), self._kwargs],
            "rng_key": self._rng_key,
            "truncation": self._truncation_state(lambda region: region.posterior.params),
        }
        return write(state.codec(), path, 0, content, None, state.versions(), 1)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Model,
        *,
        density: Any = None,
        embedding: Any = None,
    ) -> AmortizedPosterior:
        """
        The posterior that :meth:`save` has written.

        :param path: the folder, or the file.
        :param model: the model, as it was then.
        :param density: the guide's, if that was a function, which no file holds.
        :param embedding: likewise, if modules of one's own are in it.
        :raises FileNotFoundError: if there is none.
        :raises CheckpointError: if the file is damaged, or of something else.
        :raises ValueError: if ``density`` or ``embedding`` is needed, and missing.
        """
        reader = CheckpointReader(state.codec(), path)
        parts = ("params", "guide", "structure", "simulations", "record", "arguments")
        params, options, structure, table, record, arguments = (
            state.on_device(reader.part(name, list if name == "arguments" else dict))
            for name in parts
        )
        args, kwargs = arguments
        guide = AutoAmortized(model, **completed(options, density, embedding))
        guide.data_sites(*args, **kwargs)
        guide.set_structure(structure)
        key, truncation = state.on_device(reader.state["rng_key"]), None
        if kept := reader.part("truncation", dict):
            prior = prior_of(model, guide, kept["x_observed"], args, kwargs)
            regions = [
                Region(AtObservation(guide, state.on_device(own), prior), threshold)
                for own, threshold in kept["regions"]
            ]
            truncation = TruncatedPrior(prior, regions)
        table = Simulations(**table)
        return cls(model, guide, params, table, key, record, args, kwargs, truncation)

    def _chains(
        self,
        model: Model,
        draws: Any,
        num_samples: int,
        num_warmup: int,
        num_chains: int,
        rng_key: RngKey,
        args: Any,
        kwargs: Any,
    ) -> RefinedDraws:
        raw = jax.vmap(lambda one: unconstrain_fn(model, args, kwargs, one))(draws)
        if num_chains == 1:  # of which params have no axis
            raw = jax.tree.map(lambda x: x[0], raw)
        mcmc = MCMC(
            NUTS(model),
            num_warmup=num_warmup,
            num_samples=-(-num_samples // num_chains),
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(rng_key, *args, init_params=raw, **kwargs)
        found = mcmc.get_samples()
        return RefinedDraws({name: found[name][:num_samples] for name in draws})

    def _key(self, rng_key: RngKey | None) -> RngKey:
        if rng_key is not None:
            return rng_key
        self._rng_key, key = random.split(self._rng_key)
        return key

    def _rows(self, table: Simulations, num_samples: int, seed: int) -> tuple[Any, Any, Any]:
        drawn = self.guide.sample_rows(random.key(seed), self.params, table, num_samples)
        truths = {name: table[name][None] for name in drawn}
        of_draws, of_truths = (
            self.guide.log_prob_rows(self.params, table, values) for values in (drawn, truths)
        )
        return drawn, of_draws, of_truths[0]

    def _predicted(self, draws: Any, args: Any, kwargs: Any) -> dict[str, Any]:
        sites, key = self.guide.data_sites(*args, **kwargs), self._key(None)
        own = [n for n, s in self.guide.prototype_trace.items() if s["type"] == "deterministic"]
        if own:  # which tables of simulations lack
            model = Unconditioned(self.model)
            predictive = Predictive(model, dict(draws), return_sites=[*sites, *own])
            return predictive(key, *args, **kwargs)
        latents = {name: np.asarray(value) for name, value in draws.items()}
        table = simulate_at(latents, sites, self.model, args, kwargs, key, progress_bar=False)
        return {name: table[name] for name in sites}

    def _observation(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return self.guide.observation(*args, **kwargs)

    def _simulate(self, num_simulations: int, seed: int) -> Simulations:
        sites, key = self.guide.data_sites(*self._args, **self._kwargs), random.key(seed)
        key = random.fold_in(key, 0x5EED)  # not what was trained on
        if self.truncation is not None:
            latents, _ = self.truncation.sample(num_simulations, 0x5EED + seed)
            return simulate_at(latents, sites, self.model, self._args, self._kwargs, key, False)
        return simulate(
            self.model,
            num_simulations,
            *self._args,
            observed=sites,
            seed=key,
            progress_bar=False,
            **self._kwargs,
        )
