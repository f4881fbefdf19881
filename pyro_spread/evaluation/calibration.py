# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Is a guide calibrated? Its ranks over data sets that the model simulates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.infer import Predictive

from pyro_spread._inputs import takes_arrays
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.evaluation._sites import kept_elements, sample_sites, shared_dims, to_numpy
from pyro_spread.infer._invalid import Invalid
from pyro_spread.infer._two_sides import mask_at
from spread_analysis.calibration import CalibrationReport, Ranked, RankTally
from spread_analysis.log_evidence import (
    data_first,
)
from spread_core.arguments import (
    argument_name,
    get_argument,
    locate_data,
    replace_arguments,
)
from spread_core.messages import evaluation, players
from spread_core.nonfinite import Told


@unchanged_buffers()
@torch.no_grad()
@takes_arrays
def simulation_based_calibration(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_simulations: int = 1000,
    num_draws: int = 99,
    sites: Collection[str] | None = None,
    data: Mapping[str, str] | None = None,
    parallel: bool = False,
    exclude_invalid_x: bool = False,
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
    :param guide: an amortised guide: it must depend on the data through its arguments.
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
    :param kwargs: keyword arguments of both.
    :return: the ranks, with their test; :func:`spread_analysis.plot_sbc` shows them.
    :raises ValueError: if an observed site does not fit the argument that carries its data,
        ``sites`` are none that both have, or all of a site is masked; the message names them.
    """
    tally, told = RankTally(num_simulations, num_draws), Told()
    wanted: list[str] = []
    while tally.wants_more:
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
        simulated = sample_sites(trace)
        observed = {n: s for n, s in simulated.items() if s["infer"].get("was_observed")}
        for name, site in observed.items():
            if isinstance(site["fn"], Unit):
                raise ValueError(players.factor_site(name))
        located = locate_data(model, observed, args, kwargs, data)
        for name, key in located.items():
            given, value = get_argument(key, args, kwargs), observed[name]["value"]
            if np.shape(given) != value.shape:
                argument = argument_name(key, model)
                shapes = value.shape, np.shape(given)
                raise ValueError(evaluation.simulated_misfit(name, argument, *shapes))
        dims = shared_dims(simulated.values())
        failed = _invalid(observed, dims)
        invalid = failed if exclude_invalid_x else Invalid({}, {})
        if invalid.by_site:
            told(invalid.counts, invalid.total)
        if invalid.all:
            tally.leave_out(invalid.total, invalid.total)
            continue
        values = {
            key: invalid.replaced(observed[name]["value"], _axes(observed[name], dims))
            for name, key in located.items()
        }
        new_args, new_kwargs = replace_arguments(values, args, kwargs)
        # A run of its own, since what the guide masks may follow the data.
        with failed.blamed(may_exclude=True):
            proposed = poutine.trace(guide).get_trace(*new_args, **new_kwargs).nodes
        if not wanted:
            drawn = [name for name in proposed if name in simulated]
            wanted = drawn if sites is None else list(sites)
            if not wanted or not set(wanted) <= set(drawn):
                raise ValueError(evaluation.no_calibration_sites(wanted, drawn))
        predictive = Predictive(
            guide, num_samples=tally.num_draws, return_sites=tuple(wanted), parallel=parallel
        )
        with failed.blamed(may_exclude=True):
            draws = predictive(*new_args, **new_kwargs)
        run = {}
        for name in wanted:
            site, shape = simulated[name], simulated[name]["value"].shape
            drawn_values = to_numpy(draws[name]).reshape(tally.num_draws, *shape)
            kept = kept_elements(name, site) & kept_elements(name, proposed[name]).reshape(shape)
            axes = _axes(site, dims)
            good = invalid.good(len(shape), axes, [shape[axis] for axis in axes])
            kept = kept & np.asarray(good)
            if failed.by_site and not exclude_invalid_x:  # a guide may have masked them
                ranked = data_first(kept, axes).reshape(failed.total, -1).any(-1)
                failed.among(torch.as_tensor(ranked)).refuse(may_exclude=True)
            run[name] = Ranked(to_numpy(site["value"]), drawn_values, kept, axes)
        seen = [(to_numpy(site["value"]), _axes(site, dims)) for site in observed.values()]
        tally.add(run, seen, int(torch.randint(2**31, ())))
        tally.leave_out(invalid.num_bad, invalid.total)
    return tally.report()


def _axes(site: Mapping[str, Any], dims: Sequence[int]) -> list[int]:
    return [dim - site["fn"].event_dim for dim in dims]


def _invalid(observed: Mapping[str, Any], dims: Sequence[int]) -> Invalid:
    values = {name: site["value"] for name, site in observed.items()}
    masks = {name: mask_at(name, site, site["value"]) for name, site in observed.items()}
    return Invalid(values, {n: _axes(site, dims) for n, site in observed.items()}, masks)
