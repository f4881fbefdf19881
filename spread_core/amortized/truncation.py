# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
A prior restricted to where posteriors at one observation have their mass.

These are the proposals of truncated sequential posterior estimation (TSNPE; Deistler et al. 2022,
https://arxiv.org/abs/2210.04815). Where they have any mass they are proportional to the prior, so
that a posterior is learned from them as from the prior, and its loss needs no correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from spread_core.messages import amortized as messages

Values = Mapping[str, Any]

#: Share of a posterior's draws that lie outside of its region.
QUANTILE = 1e-4
_NUM_DRAWS = 20_000
# If of so many draws of the prior fewer than this share lie inside, they come from the posterior.
_LOOKED_AT, _LEAST = 50_000, 1e-3
_PROPOSALS = 50
# Nats: two ways to compute one density differ by less.
_ROUNDING = 1e-4
# Draws of the prior, in all.
_MOST = 20_000_000


class Posterior(Protocol):
    """A posterior at the observation."""

    def draw(self, number: int, seed: int) -> tuple[Values, np.ndarray]:
        """Draws, dict from site to values, and their log densities in nats."""

    def log_prob(self, values: Values) -> np.ndarray:
        """Log densities of values, in nats."""


class Prior(Protocol):
    """The prior of a program."""

    chunk_size: int
    latents: tuple[str, ...]
    observed: dict[str, np.ndarray]

    def draw(self, start: int, stop: int, seed: int) -> Values:
        """Draws with these numbers, the same for the same number and seed."""

    def log_prob(self, values: Values) -> np.ndarray:
        """
        Log densities of values, in nats.

        :raises NotImplementedError: if a site has none.
        """

    def check(self, others: Values) -> None:
        """Refuse a program whose latents depend on data; others are data, one a row."""


class Region(NamedTuple):
    """
    Where a posterior's density is above a threshold.

    :param posterior: the posterior at the observation.
    :param threshold: log density in nats.
    """

    posterior: Any
    threshold: float


class TruncatedPrior:
    """
    The prior where it lies in all regions.

    :param prior: the prior.
    :param regions: regions, the oldest first.
    """

    def __init__(self, prior: Prior, regions: Any = ()) -> None:
        self.prior, self.regions = prior, list(regions)

    def restrict(self, posterior: Posterior, seed: int) -> None:
        """
        Leave out where the density of a posterior is less than at all but 1e-4 of its draws.

        :param posterior: the posterior at the observation.
        :param seed: of the draws.
        """
        _, log_prob = posterior.draw(_NUM_DRAWS, seed)
        self.regions.append(Region(posterior, float(np.quantile(log_prob, QUANTILE))))

    def contains(self, values: Values) -> np.ndarray:
        """
        Which values lie in all regions.

        :param values: dict from site to values, one a row.
        """
        inside = np.arange(_count(values))
        for region in reversed(self.regions):  # the last is the smallest
            if len(inside):
                log_prob = region.posterior.log_prob(_rows(values, inside))
                # Of NaN none; of classes, which have equal densities, not the likeliest left out.
                inside = inside[log_prob >= region.threshold - _ROUNDING]
        found = np.zeros(_count(values), bool)
        found[inside] = True
        return found

    def sample(self, number: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Draws: those of the prior that lie inside.

        Where these are fewer than one in a thousand, draws of the last posterior are resampled by
        importance weights, as in the paper.

        :param number: how many.
        :param seed: of all random numbers.
        :return: dict from site to values, and what is to be recorded: the method and the share of
            the prior that lies inside.
        :raises ValueError: if there are too few, and the prior has no density to weight others by.
        """
        kept: list[dict[str, Any]] = []
        inside = tried = 0
        while inside < number and tried < _MOST:
            stop = tried + self.prior.chunk_size
            values = self.prior.draw(tried, stop, seed)
            kept.append(_rows(values, self.contains(values)))
            inside, tried = inside + _count(kept[-1]), stop
            if tried >= _LOOKED_AT and inside < _LEAST * tried:
                break
        record = {"method": "rejection", "acceptance": inside / tried}
        if inside < number:
            record["method"] = "importance"
            resampled = self._resample(number - inside, inside / tried, seed)
            kept.append({name: value.astype(kept[0][name].dtype) for name, value in resampled})
        joined = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
        return _rows(joined, slice(0, number)), record

    def _resample(self, number: int, acceptance: float, seed: int) -> Any:
        posterior, total = self.regions[-1].posterior, _PROPOSALS * number
        drawn, log_q = posterior.draw(total, seed)
        try:
            log_weights = self.prior.log_prob(drawn) - log_q
        except NotImplementedError as error:
            raise ValueError(messages.prior_without_density(acceptance, str(error))) from error
        log_weights = np.where(self.contains(drawn), log_weights, -np.inf)
        if not np.isfinite(log_weights).any():
            raise ValueError(messages.nothing_inside(total))
        weights = np.exp(log_weights - log_weights.max())
        # Systematic resampling: as few copies as possible.
        rng = np.random.default_rng(seed)
        place = (np.arange(number) + rng.random()) / number * weights.sum()
        rows = np.searchsorted(np.cumsum(weights), place).clip(0, total - 1)
        return _rows(drawn, rng.permutation(rows)).items()


def observed_values(x_observed: Any, sites: Sequence[str], table: Any) -> dict[str, np.ndarray]:
    """
    The observation by data site.

    :param x_observed: dict from site to value, or the value where there is one site.
    :param sites: names of the data sites.
    :param table: the :class:`Simulations`, of whose data it has shapes and types.
    :raises ValueError: if a site or its value is missing, or of another shape.
    """
    if not isinstance(x_observed, Mapping):
        if len(sites) > 1:
            raise ValueError(messages.observed_by_site(sites))
        x_observed = {sites[0]: x_observed}
    if set(x_observed) != set(sites):
        raise ValueError(messages.observed_sites(x_observed, sites))
    found = {}
    for name in sites:
        value = x_observed[name]
        value = value.detach().cpu() if hasattr(value, "detach") else value
        value, shape = np.asarray(value), table[name].shape[1:]
        if value.shape != shape:
            raise ValueError(messages.data_shape(name, value.shape, shape))
        # What is masked may be NaN, of which there is none among integers.
        finite = np.isfinite(value).all()
        found[name] = value.astype(table[name].dtype if finite else np.float32)
    return found


def _count(values: Values) -> int:
    return len(next(iter(values.values())))


def _rows(values: Values, rows: Any) -> dict[str, Any]:
    return {name: value[rows] for name, value in values.items()}
