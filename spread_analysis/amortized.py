# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Amortised posteriors: what is the same in both backends."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spread_analysis.arviz_export import to_arviz
from spread_analysis.misspecification import (
    MisspecificationWarning,
    SimulatedRange,
    data_columns,
)
from spread_analysis.pareto import smoothed
from spread_analysis.posterior_check import PosteriorCheck, check_posterior
from spread_analysis.rounds import inside_first
from spread_analysis.simulations import Simulations
from spread_core.amortized.truncation import TruncatedPrior
from spread_core.caller_warning import warn_user
from spread_core.messages import amortized as messages
from spread_core.runs import finite_rows
from spread_core.validation import as_host, check_count, check_seed

Values = Mapping[str, Any]


class RefinedDraws(dict[str, Any]):
    """
    Draws of the posterior, dict from site to values, corrected by the model's own density.

    :param draws: the draws.
    :param pareto_k: shape of the tail of the importance weights (Vehtari et al. 2024,
        arXiv:1507.02646): over 0.7 they are not to be trusted. None for draws of NUTS.
    :param effective_sample_size: how many independent draws the weighted ones are worth; None for
        draws of NUTS.
    """

    def __init__(
        self,
        draws: Values,
        pareto_k: float | None = None,
        effective_sample_size: float | None = None,
    ) -> None:
        super().__init__(draws)
        self.pareto_k, self.effective_sample_size = pareto_k, effective_sample_size


class AmortizedPosteriorShared(abc.ABC):
    """Methods of a posterior that need no arrays of a backend."""

    guide: Any
    simulations: Simulations
    record: Mapping[str, Any]
    #: The prior as rounds have truncated it; None where there was one round.
    truncation: TruncatedPrior | None = None

    #: Observations less likely than this among simulations are warned of.
    misspecification_level = 1e-3

    _range: SimulatedRange | None = None

    @abc.abstractmethod
    def _rows(self, table: Simulations, num_samples: int, seed: int) -> tuple[Any, Any, Any]:
        """Draws for each row of a table, and log densities of draws and truths."""

    @abc.abstractmethod
    def _predicted(self, draws: Values, args: Any, kwargs: Any) -> Values:
        """New data for every draw, and what the model computes of it, by site."""

    @abc.abstractmethod
    def _observation(self, args: Any, kwargs: Any) -> tuple[Values, Values]:
        """The data at the arguments, and their masks."""

    @abc.abstractmethod
    def _simulate(self, num_simulations: int, seed: int) -> Simulations:
        """More runs of the model."""

    @abc.abstractmethod
    def sample(self, *args: Any, num_samples: int = 1000, **kwargs: Any) -> Any:
        """Draws of all latents given the data."""

    def __repr__(self) -> str:
        """Latents and data, what was trained on and how, and which latents were tamed."""
        failed = int((~self.simulations.valid).sum())
        parts = [
            f"{type(self).__name__} of {', '.join(self.guide.supports)} "
            f"given {', '.join(self.simulations.observed)}",
            f"{len(self.simulations)} simulations, {failed} failed",
            f"{self.record['epochs']} epochs, held-out loss {self.record['held_out']:.3f} nats",
        ]
        if tamed := self.record.get("tamed"):
            parts.append(f"heavy tails tamed: {', '.join(tamed)}")
        if faint := sum(self.record.get("faint", {}).values()):
            parts.append(f"made faint, as they tell of no latent: {faint} numbers of the data")
        return f"<{'; '.join(parts)}>"

    def to_arviz(
        self,
        *args: Any,
        num_samples: int = 1000,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Posterior and prior, data predicted by both, and the observed data, as ArviZ data.

        Deterministic sites of the model are in the posterior.
        After several rounds without the prior, of which the last simulations are a part only.

        :param args: positional arguments of the model, with the data in their place.
        :param num_samples: number of draws.
        :param coords: dict from dimension to the labels along it.
        :param dims: dict from site to the names of its dimensions.
        :param kwargs: keyword arguments of the model.
        :return: an ``InferenceData``, or a ``DataTree`` under ArviZ 1.
        :raises ImportError: if ArviZ is missing.
        """
        check_count("num_samples", num_samples)
        draws = self.sample(*args, num_samples=num_samples, **kwargs)
        observed, _ = self._observation(args, kwargs)
        groups: dict[str, Any] = {}
        if self.truncation is None:
            prior = self.simulations.take(np.flatnonzero(self.simulations.valid)[:num_samples])
            groups["prior"] = {name: prior[name] for name in draws}
            groups["prior_predictive"] = {name: prior[name] for name in observed}
        predicted = dict(self._predicted(draws, args, kwargs))
        new = {name: predicted.pop(name) for name in observed}
        return to_arviz(
            posterior={**draws, **predicted},
            posterior_predictive=new,
            **groups,
            observed_data=observed,
            coords=coords,
            dims=dims,
        )

    def check(
        self,
        simulations: Simulations | None = None,
        *,
        num_simulations: int = 300,
        num_samples: int = 99,
        level: float = 0.01,
        seed: int = 0,
    ) -> PosteriorCheck:
        """
        Check the posterior on simulations that it was not trained on, and warn if it fails.

        Ranks of the truth (SBC), expected coverage, TARP and a classifier: see
        :func:`spread_analysis.check_posterior`. After several rounds both the simulations and the
        draws are those of the truncated prior: elsewhere nothing was learned.

        :param simulations: runs that were held out; left out, the model makes new ones.
        :param num_simulations: how many.
        :param num_samples: draws of the posterior for each.
        :param level: share of exact posteriors that fail, at most.
        :param seed: of the simulations, the draws and the tests.
        :return: the report, to print and to plot.
        """
        check_count("num_samples", num_samples)
        check_count("num_simulations", num_simulations)
        check_seed(seed)
        table = self._simulate(num_simulations, seed) if simulations is None else simulations
        table = table.take(np.flatnonzero(table.valid))
        if self.truncation is None:
            draws, of_draws, of_truths = self._rows(table, num_samples, seed)
        else:
            table, draws, of_draws, of_truths = self._rows_inside(table, num_samples, seed)
        data = {v.name: table[v.name] for group in self.guide.context.data for v in group.variables}
        kept = {name: table.masks[name] for name in draws if name in table.masks}
        return check_posterior(
            {name: table[name] for name in draws},
            {name: as_host(values) for name, values in draws.items()},
            {name: _without(data[name], table.masks.get(name)) for name in data},
            log_prob_truth=as_host(of_truths),
            log_prob_draws=as_host(of_draws),
            kept={name: _over_event(mask, table[name]) for name, mask in kept.items()} or None,
            level=level,
            seed=seed,
        )

    def _rows_inside(self, table: Simulations, num_samples: int, seed: int) -> Any:
        """Rows of a table, and draws for each, that lie where the rounds have trained."""
        assert self.truncation is not None
        latents = self.truncation.prior.latents
        kept = self.truncation.contains({name: table[name] for name in latents})
        if not kept.any():
            raise ValueError(messages.none_inside())
        table = table.take(kept)
        drawn, of_draws, of_truths = self._rows(table, 4 * num_samples, seed)
        host = {name: as_host(values) for name, values in drawn.items()}
        flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in host.items()}
        inside = self.truncation.contains(flat).reshape(4 * num_samples, len(table))
        chosen, order = inside_first(host, inside, num_samples)
        return table, chosen, np.take_along_axis(as_host(of_draws), order, 0), of_truths

    def _made_finite(self, args: Any, kwargs: Any) -> dict[str, np.ndarray]:
        """
        The data at sites that hold NaN where they are masked, with simulated ones there instead: a
        density would leave them out, but its gradient would be NaN.
        """
        values, _ = self._observation(args, kwargs)
        found = {}
        for variable in self.guide.context.sites:
            value, known = np.array(values[variable.name]), self.simulations[variable.name]
            if np.isfinite(value).all():
                continue
            rows, elements = (x.reshape(-1, *variable.event_shape) for x in (value, known))
            rows[~finite_rows(rows, None)] = elements[finite_rows(elements, None)][0]
            found[variable.name] = rows.reshape(value.shape).astype(known.dtype)
        return found

    def _truncation_state(self, params: Callable[[Any], Any]) -> dict[str, Any]:
        """What the truncated prior is made of, for a checkpoint."""
        if self.truncation is None:
            return {}
        return {
            "x_observed": {name: v[0] for name, v in self.truncation.prior.observed.items()},
            "regions": [[params(one), one.threshold] for one in self.truncation.regions],
        }

    def _warn_if_outside(self, args: Any, kwargs: Any) -> None:
        """Warn of data that lie outside of what was simulated."""
        values, masks = self._observation(args, kwargs)
        known = {name: self.simulations[name] for name in values}
        other = any(np.shape(v) != known[n].shape[1:] for n, v in values.items())
        if self.guide.context.masked:
            return  # what is not masked differs from row to row
        if other or masks:
            raise ValueError(messages.other_sizes(list(values)))
        if self.truncation is not None:
            at = self.truncation.prior.observed
            if any(not np.allclose(value, at[name][0]) for name, value in values.items()):
                warn_user(messages.other_than_observed(list(values)), MisspecificationWarning)
                return
        good = self.simulations.valid
        if self._range is None:
            if good.sum() < 1 / self.misspecification_level:
                return  # too few to tell one in so many
            columns, _ = data_columns({name: value[good] for name, value in known.items()})
            self._range = SimulatedRange.fit(columns)
        own, _ = data_columns({name: np.asarray(value)[None] for name, value in values.items()})
        p = self._range.p_value(own[0])
        if p < self.misspecification_level:
            warn_user(messages.outside(p, list(values)), MisspecificationWarning)


def simulations_state(table: Simulations) -> dict[str, Any]:
    """
    What ``Simulations`` is made of, for a checkpoint.

    :param table: the table.
    """
    return {
        "values": table.values,
        "observed": list(table.observed),
        "masks": table.masks,
        "failed": ~table.valid,
    }


def refined(
    draws: Values,
    log_weights: np.ndarray,
    num_samples: int,
    seed: int,
    take: Callable[[Any, np.ndarray], Any],
) -> RefinedDraws:
    """
    Draws resampled by importance weights, smoothed by their Pareto tail.

    :param draws: proposals, dict from site to values.
    :param log_weights: log of the model's density over the guide's at each.
    :param num_samples: how many to return.
    :param seed: of the resampling.
    :param take: takes rows of values.
    """
    weights, pareto_k = smoothed(log_weights)
    size = 1 / np.square(weights).sum()
    # Systematic resampling: as few copies as possible.
    place = (np.arange(num_samples) + np.random.default_rng(seed).random()) / num_samples
    rows = np.searchsorted(np.cumsum(weights), place).clip(0, len(weights) - 1)
    rows = np.random.default_rng([seed, 1]).permutation(rows)
    return RefinedDraws({k: take(v, rows) for k, v in draws.items()}, pareto_k, float(size))


def _without(values: np.ndarray, mask: Any) -> np.ndarray:
    return values if mask is None else np.where(_over_event(mask, values), values, 0)


def _over_event(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    wide = mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim))
    return np.broadcast_to(wide, values.shape)
