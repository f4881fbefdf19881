# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Is a guide calibrated? Its ranks over data sets that the model simulates."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.distributions import Unit
from numpyro.infer import Predictive

from numpyro_spread._inputs import takes_arrays
from numpyro_spread._typing import Args, Guide, Kwargs, Model, Params, RngKey, Sites
from numpyro_spread.evaluation._sites import kept_elements, numpy_seed, sample_sites, trace_of
from numpyro_spread.infer._invalid import Invalid, rows_first
from numpyro_spread.infer._scan import Unconditioned
from numpyro_spread.infer._two_sides import mask_at
from spread_analysis.calibration import CalibrationReport
from spread_analysis.rank_tally import Ranked, RankTally
from spread_analysis.simulations import Simulations
from spread_analysis.table_rows import SiteOfTable, TableRows
from spread_core.arguments import get_argument, replace_arguments
from spread_core.evaluation import (
    data_axes,
    knows_its_data,
    locate_simulated,
    shared_dims,
    sites_to_rank,
)
from spread_core.messages import simulations as messages
from spread_core.nonfinite import NonFiniteError, Told


@takes_arrays
def simulation_based_calibration(
    rng_key: RngKey,
    params: Params,
    model: Model,
    guide: Guide,
    *args: Any,
    num_simulations: int = 1000,
    num_draws: int = 99,
    sites: Collection[str] | None = None,
    data: Mapping[str, str] | None = None,
    parallel: bool = False,
    exclude_invalid_x: bool = False,
    simulations: Simulations | None = None,
    **kwargs: Any,
) -> CalibrationReport:
    r"""
    Rank true latents among the guide's draws given the data that they made.

    Latents and data are drawn from the model, the guide sees the data in place of the real ones.
    If the guide is the posterior, the rank of the true latent among its draws is uniform (Talts et
    al. 2018, arXiv:1804.06788). The guide may be implicit: it is only sampled. The elements of the
    plates that all sites share are simulations of their own, so that a batch costs one run.

    Elements that model or guide masks out are not ranked. A simulation counts once: where the model
    repeats itself, as one that reads its latents from a table does, one pass is all there is.

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro_spread import simulation_based_calibration
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Normal(x / 2, 0.2))  # too narrow
        >>> report = simulation_based_calibration(
        ...     jax.random.key(0), {}, model, guide, jnp.zeros(500), num_draws=19
        ... )
        >>> report.p_value() < 1e-6
        True

    :param rng_key: random key.
    :param params: dict from param site to value, as ``svi.get_params(state)``.
    :param model: the model, which can be run forward.
    :param guide: an amortised guide: it must depend on the data through its arguments, or have
        methods ``data_sites`` and ``given``, as ``AutoAmortized`` has.
    :param args: positional arguments of both; of the data only the shape matters.
    :param num_simulations: simulations, at least, masked ones among them; a batch is not cut. There
        are fewer where the model records no more.
    :param num_draws: draws of the guide for each.
    :param sites: latent sites to rank; all by default that model and guide have in common.
    :param data: dict from observed site to the name of the model argument that carries its data.
        Left out: the argument of the site's name, else the first.
    :param parallel: whether all draws of the guide are one run, as in ``Predictive``: faster, and
        takes more memory.
    :param exclude_invalid_x: whether simulations that are NaN or inf are left out, with one
        :class:`InvalidSimulationsWarning`; otherwise they are an error. Ranks of the others are as
        uniform: the posterior of finite data is that given that the simulator succeeds.
    :param simulations: a table of simulations to rank instead of new ones, which the guide was not
        trained on. Each row counts once, rows that have failed are left out with one
        :class:`InvalidSimulationsWarning`, masks of the table take the place of the model's.
    :param kwargs: keyword arguments of both.
    :return: the ranks, with their test; :func:`spread_analysis.plot_sbc` shows them.
    :raises ValueError: if an observed site does not fit the argument that carries its data,
        ``sites`` are none that both have, all of a site is masked, or a table lacks a site or has
        it in another shape; the message names them.
    """
    tally, told = RankTally(num_simulations, num_draws), Told()
    first = sample_sites(_simulate(rng_key, params, model, args, kwargs))
    may_exclude = exclude_invalid_x and simulations is None
    ranking = _Ranking(
        params, model, guide, args, kwargs, first, tally, data, parallel, may_exclude
    )
    if simulations is not None:
        second = sample_sites(_simulate(random.split(rng_key)[0], params, model, args, kwargs))
        rank_rows = jax.jit(ranking.rank_values)
        for rows in ranking.rows_of(simulations, rng_key, second, sites):
            if tally.has_enough:
                return tally.report()
            rng_key, run_key, tie_key = random.split(rng_key, 3)
            ranked, values, _ = rank_rows(run_key, rows.values, rows.kept)
            ranking.add(tie_key, ranked, values, rows.number)
        return tally.report(recorded=True)
    with nullcontext() if may_exclude else ranking.failures(first).blamed(may_exclude=True):
        ranking.choose(rng_key, first, sites)

    @jax.jit
    def simulate(rng_key: jax.Array) -> Any:
        model_key, guide_key = random.split(rng_key)
        drawn = sample_sites(_simulate(model_key, params, model, args, kwargs))
        own = {name: kept_elements(name, drawn[name]) for name in ranking.wanted}
        return ranking.rank(guide_key, drawn, own)

    while tally.wants_more:
        rng_key, run_key, tie_key = random.split(rng_key, 3)
        ranked, values, (bad, counts) = simulate(run_key)
        bad, counts = np.asarray(bad), {name: int(count) for name, count in counts.items() if count}
        if counts and not exclude_invalid_x:
            raise NonFiniteError(messages.failed(counts, len(bad), may_exclude=True))
        if counts:
            told(counts, len(bad))
        if not bad.all():
            ranking.add(tie_key, ranked, values)
        tally.leave_out(int(bad.sum()), len(bad))
    return tally.report()


class _Ranking:
    """Ranks simulated latents among the guide's draws given the simulated data, run by run."""

    def __init__(
        self,
        params: Params,
        model: Model,
        guide: Guide,
        args: Args,
        kwargs: Kwargs,
        first: Sites,
        tally: RankTally,
        data: Mapping[str, str] | None,
        parallel: bool,
        exclude_invalid_x: bool,
    ) -> None:
        self._params, self._guide, self._args, self._kwargs = params, guide, args, kwargs
        self._first, self._tally = first, tally
        self._parallel, self._exclude = parallel, exclude_invalid_x
        self._dims = shared_dims(first.values())
        #: The latents that are ranked.
        self.wanted: list[str] = []
        if knows_its_data(guide):
            self._observed = tuple(guide.data_sites(*args, **kwargs))
            self._located: Mapping[str, Any] = {}
        else:
            observed = {n: s for n, s in first.items() if s["infer"].get("was_observed")}
            self._observed = tuple(observed)
            self._located = locate_simulated(model, observed, Unit, args, kwargs, data)

    def _axes(self, name: str) -> list[int]:
        return data_axes(self._first[name], self._dims)

    def failures(self, sites: Sites) -> Invalid:
        """Which of the simulated data are NaN or inf."""
        values = {name: sites[name]["value"] for name in self._observed}
        masks = {name: mask_at(name, sites[name], jnp.shape(v)) for name, v in values.items()}
        return Invalid(values, {name: self._axes(name) for name in values}, masks)

    def _given(self, sites: Sites) -> tuple[Guide, Args, Kwargs]:
        """The guide that is given what was simulated, and its arguments."""
        values = {}
        for name in self._observed:
            values[name] = sites[name]["value"]
            if self._exclude:  # what the guide says of them must be something
                key = self._located.get(name)
                given = 0.0 if key is None else get_argument(key, self._args, self._kwargs)
                values[name] = self.failures(sites).replaced(values[name], self._axes(name), given)
        if knows_its_data(self._guide):
            return self._guide.given(values), self._args, self._kwargs
        new = {self._located[name]: value for name, value in values.items()}
        return self._guide, *replace_arguments(new, self._args, self._kwargs)

    def choose(self, rng_key: RngKey, sites: Sites, wanted: Collection[str] | None) -> None:
        """Choose the latents to rank: those asked for, else all that the guide draws."""
        guide, args, kwargs = self._given(sites)
        proposed = trace_of(rng_key, self._params, guide, args, kwargs)
        self.wanted = sites_to_rank(wanted, proposed, self._first)

    def rows_of(
        self,
        table: Simulations,
        rng_key: RngKey,
        second: Sites,
        wanted: Collection[str] | None,
    ) -> TableRows:
        """The rows of a table, as values of the sites that are needed."""
        # Only the names of the guide's sites matter here, and a run of the model may fail.
        finite = {
            name: {**site, "value": jnp.nan_to_num(site["value"], nan=0.0, posinf=0.0, neginf=0.0)}
            for name, site in self._first.items()
        }
        self.choose(rng_key, finite, wanted)
        sites = {}
        for name in [*self.wanted, *self._observed]:
            shape = jnp.shape(self._first[name]["value"])
            mask, other = (np.asarray(kept_elements(name, s[name])) for s in (self._first, second))
            moves = not np.array_equal(mask, other)
            sites[name] = SiteOfTable(shape, self._axes(name), mask.reshape(shape), moves)
        return TableRows(table, sites, self._observed)

    def rank_values(self, rng_key: jax.Array, values: Any, kept: Any) -> Any:
        """As :meth:`rank`, of values by site, in the type of the model's own."""
        sites = dict(self._first)
        for name, value in values.items():
            own = jnp.asarray(value, jnp.result_type(sites[name]["value"]))
            sites[name] = {**sites[name], "value": own}
        return self.rank(rng_key, sites, kept)

    def rank(self, rng_key: jax.Array, sites: Sites, own: Mapping[str, Any]) -> Any:
        """
        One run: truths, draws and what counts of them; the data; and what failed.

        :param sites: the sites of the model.
        :param own: dict from latent to the elements that the model does not mask out.
        """
        tally = self._tally
        guide, args, kwargs = self._given(sites)
        predictive = Predictive(
            guide,
            params=dict(self._params),
            num_samples=tally.num_draws,
            return_sites=self.wanted,
            parallel=self._parallel,
        )
        draws = predictive(rng_key, *args, **kwargs)
        # A run of its own, since what the guide masks may follow the data.
        proposed = trace_of(rng_key, self._params, guide, args, kwargs)
        ranked, invalid = {}, self.failures(sites)
        seen = jnp.zeros(invalid.total, bool)
        for name in self.wanted:
            truth, axes = sites[name]["value"], self._axes(name)
            kept = kept_elements(name, proposed[name]).reshape(jnp.shape(truth)) & own[name]
            seen = seen | rows_first(kept, axes).reshape(invalid.total, -1).any(-1)
            if self._exclude:
                kept &= invalid.good(jnp.ndim(truth), axes, [truth.shape[axis] for axis in axes])
            ranked[name] = truth, draws[name].reshape(tally.num_draws, *jnp.shape(truth)), kept
        if not self._exclude:  # a guide may have masked them
            invalid = invalid.among(seen)
        values = {name: sites[name]["value"] for name in self._observed}
        return ranked, values, (invalid.rows, invalid.counts)

    def add(self, rng_key: jax.Array, ranked: Any, values: Any, number: int | None = None) -> None:
        """
        Take in one run.

        :param rng_key: of the ties.
        :param ranked: what :meth:`rank` has found.
        :param values: dict from site to the data.
        :param number: how many of the data count, the first ones; None is all.
        """
        run = {
            name: Ranked(truth, drawn, kept, self._axes(name))
            for name, (truth, drawn, kept) in ranked.items()
        }
        seen = [(value, self._axes(name)) for name, value in values.items()]
        self._tally.add(run, seen, numpy_seed(rng_key), number)


def _simulate(rng_key: RngKey, params: Params, model: Model, args: Args, kwargs: Kwargs) -> Sites:
    return trace_of(rng_key, params, Unconditioned(model), args, kwargs)
