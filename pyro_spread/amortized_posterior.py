# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The posterior of a model for any data: draw, score, correct, check, keep."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from torch.distributions import biject_to

from pyro_spread import _checkpoint_state as state
from pyro_spread._inputs import as_tensor
from pyro_spread._rounds import AtObservation, prior_of, simulate_at
from pyro_spread._seeding import seeded
from pyro_spread._typing import Model
from pyro_spread.autoguide.amortized import AutoAmortized
from pyro_spread.simulate import Simulations, simulate
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
from spread_core.inputs import converted
from spread_core.messages import amortized as messages
from spread_core.validation import check_count

__all__ = ["AmortizedPosterior"]


class AmortizedPosterior(AmortizedPosteriorShared):
    """
    The posterior of a model for any data, as :func:`amortize` returns it.

    Arguments of its methods are the model's, with the data in their place.

    :param model: the model.
    :param guide: the trained guide.
    :param simulations: what it was trained on.
    :param record: of the training: epochs, held-out losses.
    :param args: the model's positional arguments at the simulations.
    :param kwargs: its keyword arguments.
    :param truncation: the prior as rounds have truncated it.
    """

    def __init__(
        self,
        model: Model,
        guide: AutoAmortized,
        simulations: Simulations,
        record: Mapping[str, Any],
        args: Any = (),
        kwargs: Any = None,
        truncation: TruncatedPrior | None = None,
    ) -> None:
        self.model, self.guide = model, guide
        self.simulations, self.record = simulations, dict(record)
        self.truncation = truncation
        self._args, self._kwargs = tuple(args), dict(kwargs or {})

    def sample(self, *args: Any, num_samples: int = 1000, **kwargs: Any) -> dict[str, torch.Tensor]:
        """
        Draws of all latents given the data, inside their supports.

        :param args: positional arguments of the model, with the data in their place.
        :param num_samples: number of draws.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to values of shape (num_samples,) + shape of the site.
        :raises ValueError: if the model observes no data at these arguments.
        """
        check_count("num_samples", num_samples)
        self._warn_if_outside(args, kwargs)
        return self.guide.sample_posterior(*args, sample_shape=(num_samples,), **kwargs)

    @torch.no_grad()
    def log_prob(self, values: Mapping[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        Log density of latents given the data, in nats; normalised.

        :param values: dict from every latent to values of shape (num_samples,) + shape of the
            site.
        :param args: positional arguments of the model, with the data in their place.
        :param kwargs: keyword arguments of the model.
        :return: of shape (num_samples,).
        :raises ValueError: if a latent is missing, or the model observes no data.
        """
        return self.guide.log_prob(values, *args, **kwargs)

    def map(self, *args: Any, num_samples: int = 1000, **kwargs: Any) -> dict[str, torch.Tensor]:
        """
        The latents at which the posterior's density is largest.

        The best of the draws, moved uphill by L-BFGS; discrete latents stay.

        :param args: positional arguments of the model, with the data in their place.
        :param num_samples: number of draws.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to its value.
        """
        draws = self.sample(*args, num_samples=num_samples, **kwargs)
        log_prob = self.log_prob(draws, *args, **kwargs)
        best = log_prob.argmax()
        top = {name: value[best] for name, value in draws.items()}
        supports = self.guide.supports
        raw = {
            name: biject_to(supports[name]).inv(value).detach().clone().requires_grad_()
            for name, value in top.items()
            if not supports[name].is_discrete
        }
        if not raw:
            return top
        optim = torch.optim.LBFGS(list(raw.values()), line_search_fn="strong_wolfe", max_iter=100)

        def values() -> dict[str, torch.Tensor]:
            return top | {name: biject_to(supports[name])(u) for name, u in raw.items()}

        def objective() -> torch.Tensor:
            one = {name: value[None] for name, value in values().items()}
            return -self.guide.log_prob(one, *args, **kwargs)[0]

        def closure() -> float:
            optim.zero_grad()
            loss = objective()
            loss.backward()
            return float(loss.detach())

        optim.step(closure)
        with torch.no_grad():
            is_better = bool(-objective() > log_prob[best])
            moved = values()
        return {name: (moved[name] if is_better else top[name]).detach() for name in top}

    @torch.no_grad()
    def refine(
        self,
        *args: Any,
        method: str = "importance",
        num_samples: int = 1000,
        num_proposals: int | None = None,
        num_warmup: int = 500,
        num_chains: int = 4,
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
        :param num_chains: chains of NUTS, one after another.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to values of shape (num_samples,) + shape of the site.
        :raises ValueError: if a site of the model has no density, or a latent is masked.
        """
        if method not in ("importance", "nuts"):
            raise ValueError(messages.refine_method(method))
        args, kwargs = converted((args, kwargs), as_tensor)
        if names := self.guide.masked_latents(*args, **kwargs):
            raise ValueError(messages.masked_latents(names))
        check_count("num_samples", num_samples)
        check_count("num_chains", num_chains)
        number = 10 * num_samples if num_proposals is None else num_proposals
        check_count("num_proposals", number)
        number = num_chains if method == "nuts" else number
        draws = self.sample(*args, num_samples=number, **kwargs)
        finite = {name: as_tensor(v) for name, v in self._made_finite(args, kwargs).items()}
        model = poutine.condition(self.model, data=finite) if finite else self.model
        if method == "nuts":
            return self._chains(model, draws, num_samples, num_warmup, num_chains, args, kwargs)

        def log_joint(row: int) -> float:
            one = {name: value[row] for name, value in draws.items()}
            conditioned = poutine.condition(model, data=one)
            return float(poutine.trace(conditioned).get_trace(*args, **kwargs).log_prob_sum())

        try:
            of_model = np.array([log_joint(row) for row in range(number)])
        except NotImplementedError as error:
            raise ValueError(messages.no_density(str(error))) from error
        log_weights = of_model - self.log_prob(draws, *args, **kwargs).double().cpu().numpy()
        seed = int(torch.randint(2**31 - 1, ()))
        found = refined(
            draws, log_weights, num_samples, seed, lambda value, rows: value[torch.as_tensor(rows)]
        )
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
            "params": self.guide.params(),
            "guide": written(self.guide.options()),
            "structure": self.guide.structure(),
            "simulations": simulations_state(self.simulations),
            "record": self.record,
            "arguments": [list(self._args), self._kwargs],
            "truncation": self._truncation_state(lambda region: region.posterior.guide.params()),
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
        args, kwargs = reader.part("arguments", list)
        options = completed(reader.part("guide", dict), density, embedding)
        structure = reader.part("structure", dict)

        def trained(params: Any) -> AutoAmortized:
            guide = AutoAmortized(model, **options)
            guide.data_sites(*args, **kwargs)
            guide.set_structure(structure)
            guide.set_params(params)
            return guide

        guide = trained(reader.part("params", dict))
        table = Simulations(**reader.part("simulations", dict))
        record, kept = reader.part("record", dict), reader.part("truncation", dict)
        truncation = None
        if kept:
            prior = prior_of(model, guide, kept["x_observed"], args, kwargs)
            regions = [Region(AtObservation(trained(p), prior), t) for p, t in kept["regions"]]
            truncation = TruncatedPrior(prior, regions)
        return cls(model, guide, table, record, args, kwargs, truncation)

    def _chains(
        self,
        model: Model,
        draws: Any,
        num_samples: int,
        num_warmup: int,
        num_chains: int,
        args: Any,
        kwargs: Any,
    ) -> RefinedDraws:
        found: list[dict[str, torch.Tensor]] = []
        for chain in range(num_chains):  # in this process: a model may not be picklable
            start = {
                name: biject_to(self.guide.supports[name]).inv(value[chain])
                for name, value in draws.items()
            }
            mcmc = MCMC(
                NUTS(model),
                num_samples=-(-num_samples // num_chains),
                warmup_steps=num_warmup,
                initial_params=start,
                disable_progbar=True,
            )
            with torch.enable_grad():
                mcmc.run(*args, **kwargs)
            found.append(mcmc.get_samples())
        return RefinedDraws(
            {name: torch.cat([one[name] for one in found])[:num_samples] for name in draws}
        )

    @torch.no_grad()
    def _rows(self, table: Simulations, num_samples: int, seed: int) -> tuple[Any, Any, Any]:
        with seeded(seed):
            drawn = self.guide.sample_rows(table, num_samples)
        truths = {name: table[name][None] for name in drawn}
        of_draws, of_truths = (self.guide.log_prob_rows(table, v) for v in (drawn, truths))
        return drawn, of_draws, of_truths[0]

    def _predicted(self, draws: Any, args: Any, kwargs: Any) -> dict[str, Any]:
        sites = self.guide.data_sites(*args, **kwargs)
        known = self.guide.prototype_trace.items()
        own = [name for name, site in known if site["infer"].get("_deterministic")]
        if own:  # which tables of simulations lack
            model = poutine.uncondition(self.model)
            predictive = Predictive(model, dict(draws), return_sites=[*sites, *own])
            return predictive(*args, **kwargs)
        latents = {name: value.cpu().numpy() for name, value in draws.items()}
        seed = int(torch.randint(2**31 - 1, ()))
        table = simulate_at(latents, sites, self.model, args, kwargs, seed, progress_bar=False)
        return {name: table[name] for name in sites}

    def _observation(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        values, masks = self.guide.observation(*args, **kwargs)
        return {name: value.cpu().numpy() for name, value in values.items()}, masks

    def _simulate(self, num_simulations: int, seed: int) -> Simulations:
        sites = self.guide.data_sites(*self._args, **self._kwargs)
        seed = 0x5EED + seed  # not what was trained on
        if self.truncation is not None:
            latents, _ = self.truncation.sample(num_simulations, seed)
            return simulate_at(latents, sites, self.model, self._args, self._kwargs, seed, False)
        return simulate(
            self.model,
            num_simulations,
            *self._args,
            observed=sites,
            seed=seed,
            progress_bar=False,
            **self._kwargs,
        )
