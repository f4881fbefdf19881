# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Is a guide calibrated? Its ranks over data sets that the model simulates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.distributions import Unit
from pyro.infer import Predictive

from pyro_spread._inputs import takes_arrays
from pyro_spread._transaction import unchanged_buffers
from pyro_spread._typing import Args, Guide, Kwargs, Model, Site, Sites
from pyro_spread.evaluation._sites import kept_elements, sample_sites
from pyro_spread.infer._invalid import Invalid
from pyro_spread.infer._two_sides import mask_at
from spread_analysis.calibration import CalibrationReport
from spread_analysis.rank_tally import Ranked, RankTally
from spread_analysis.simulations import Simulations
from spread_analysis.table_rows import SiteOfTable, TableRows
from spread_core.arguments import replace_arguments
from spread_core.evaluation import (
    data_axes,
    data_first,
    knows_its_data,
    locate_simulated,
    shared_dims,
    sites_to_rank,
)
from spread_core.nonfinite import Told
from spread_core.validation import as_host


@unchanged_buffers()
@torch.no_grad()
@takes_arrays
def simulation_based_calibration(
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

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_spread import simulation_based_calibration
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.2))  # too narrow
        >>> _ = pyro.set_rng_seed(0)
        >>> report = simulation_based_calibration(model, guide, torch.zeros(500), num_draws=19)
        >>> report.p_value() < 1e-6
        True

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
    :param parallel: whether all draws of the guide are one run, as in ``Predictive``: faster, for
        guides that broadcast.
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
    tally = RankTally(num_simulations, num_draws)
    ranking = _Ranking(model, guide, args, kwargs, tally, sites, data, parallel, exclude_invalid_x)
    if simulations is None:
        while tally.wants_more:
            ranking.add(_forward(model, args, kwargs))
        return tally.report()
    first, second = (_forward(model, args, kwargs) for _ in range(2))
    table = ranking.rows_of(simulations, first, second)
    for rows in table:
        if tally.has_enough:
            return tally.report()
        ranking.add(_with_values(first, rows.values), rows.kept, rows.number)
    return tally.report(recorded=True)


def _forward(model: Model, args: Args, kwargs: Kwargs) -> Sites:
    """The sites of one run of the model, the observed ones drawn."""
    trace = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    return sample_sites(trace)


def _with_values(sites: Sites, values: Mapping[str, NDArray]) -> Sites:
    """These sites with other values, in the type and on the device of the model's own."""
    return {
        name: {**sites[name], "value": _like(value, sites[name])} for name, value in values.items()
    }


def _like(value: NDArray, site: Site) -> torch.Tensor:
    own = site["value"]
    return torch.as_tensor(value, dtype=own.dtype, device=own.device)


class _Ranking:
    """Ranks simulated latents among the guide's draws given the simulated data, run by run."""

    def __init__(
        self,
        model: Model,
        guide: Guide,
        args: Args,
        kwargs: Kwargs,
        tally: RankTally,
        sites: Collection[str] | None,
        data: Mapping[str, str] | None,
        parallel: bool,
        exclude_invalid_x: bool,
    ) -> None:
        self._model, self._guide, self._args, self._kwargs = model, guide, args, kwargs
        self._tally, self._sites, self._data = tally, sites, data
        self._parallel, self._exclude = parallel, exclude_invalid_x
        self._told = Told()
        self._wanted: list[str] = []

    def _observed(self, simulated: Sites) -> Sites:
        """The sites whose values the guide is given."""
        if knows_its_data(self._guide):
            names = self._guide.data_sites(*self._args, **self._kwargs)
            return {name: simulated[name] for name in names}
        return {n: s for n, s in simulated.items() if s["infer"].get("was_observed")}

    def _given(
        self, values: Mapping[str, torch.Tensor], observed: Sites
    ) -> tuple[Guide, Args, Kwargs]:
        """The guide that is given these values at the observed sites, and its arguments."""
        if knows_its_data(self._guide):
            return self._guide.given(dict(values)), self._args, self._kwargs
        located = locate_simulated(
            self._model, observed, Unit, self._args, self._kwargs, self._data
        )
        new = {key: values[name] for name, key in located.items()}
        return self._guide, *replace_arguments(new, self._args, self._kwargs)

    def rows_of(self, table: Simulations, first: Sites, second: Sites) -> TableRows:
        """The rows of a table, as values of the sites that are needed."""
        observed = self._observed(first)
        # Only the names of the guide's sites matter here, and a run of the model may fail.
        values = {n: s["value"].nan_to_num(0.0, 0.0, 0.0) for n, s in observed.items()}
        guide, args, kwargs = self._given(values, observed)
        proposed = poutine.trace(guide).get_trace(*args, **kwargs).nodes
        self._wanted = sites_to_rank(self._sites, proposed, first)
        dims = shared_dims(first.values())
        sites = {}
        for name in [*self._wanted, *observed]:
            site, mask = first[name], kept_elements(name, first[name])
            moves = not np.array_equal(mask, kept_elements(name, second[name]))
            shape = tuple(site["value"].shape)
            sites[name] = SiteOfTable(shape, data_axes(site, dims), mask.reshape(shape), moves)
        return TableRows(table, sites, observed)

    def add(
        self,
        simulated: Sites,
        kept_rows: Mapping[str, NDArray[np.bool_]] | None = None,
        number: int | None = None,
    ) -> None:
        """
        Rank one run.

        :param simulated: the sites of the model.
        :param kept_rows: dict from site to the elements that count; None asks the model.
        :param number: how many of the data count, the first ones; None is all.
        """
        tally, wanted = self._tally, self._wanted
        observed = self._observed(simulated)
        dims = shared_dims(simulated.values())
        failed = _invalid(observed, dims) if kept_rows is None else Invalid({}, {})
        invalid = failed if self._exclude else Invalid({}, {})
        if invalid.by_site:
            self._told(invalid.counts, invalid.total)
        if invalid.all:
            tally.leave_out(invalid.total, invalid.total)
            return
        values = {
            name: invalid.replaced(site["value"], data_axes(site, dims))
            for name, site in observed.items()
        }
        guide, args, kwargs = self._given(values, observed)
        # A run of its own, since what the guide masks may follow the data.
        with failed.blamed(may_exclude=True):
            proposed = poutine.trace(guide).get_trace(*args, **kwargs).nodes
        if not wanted:
            wanted = self._wanted = sites_to_rank(self._sites, proposed, simulated)
        predictive = Predictive(
            guide, num_samples=tally.num_draws, return_sites=tuple(wanted), parallel=self._parallel
        )
        with failed.blamed(may_exclude=True):
            draws = predictive(*args, **kwargs)
        run = {}
        for name in wanted:
            site, shape = simulated[name], simulated[name]["value"].shape
            drawn_values = as_host(draws[name]).reshape(tally.num_draws, *shape)
            own = kept_elements(name, site) if kept_rows is None else kept_rows[name]
            kept = own & kept_elements(name, proposed[name]).reshape(shape)
            axes = data_axes(site, dims)
            good = invalid.good(len(shape), axes, [shape[axis] for axis in axes])
            kept = kept & np.asarray(good)
            if failed.by_site and not self._exclude:  # a guide may have masked them
                ranked = data_first(kept, axes).reshape(failed.total, -1).any(-1)
                failed.among(torch.as_tensor(ranked)).refuse(may_exclude=True)
            run[name] = Ranked(as_host(site["value"]), drawn_values, kept, axes)
        seen = [(as_host(site["value"]), data_axes(site, dims)) for site in observed.values()]
        tally.add(run, seen, int(torch.randint(2**31, ())), number)
        tally.leave_out(invalid.num_bad, invalid.total)


def _invalid(observed: Sites, dims: Sequence[int]) -> Invalid:
    values = {name: site["value"] for name, site in observed.items()}
    masks = {name: mask_at(name, site, site["value"]) for name, site in observed.items()}
    return Invalid(values, {n: data_axes(site, dims) for n, site in observed.items()}, masks)
