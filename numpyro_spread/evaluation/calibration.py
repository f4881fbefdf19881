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
    by_site = guide if knows_its_data(guide) else None
    if by_site is not None:
        observed = {name: first[name] for name in by_site.data_sites(*args, **kwargs)}
        located = {}
    else:
        observed = {n: s for n, s in first.items() if s["infer"].get("was_observed")}
        located = locate_simulated(model, observed, Unit, args, kwargs, data)
    dims = shared_dims(first.values())

    def axes(name: str) -> list[int]:
        return data_axes(first[name], dims)

    def failures(sites: Sites) -> Invalid:
        values = {name: sites[name]["value"] for name in observed}
        masks = {name: mask_at(name, sites[name], jnp.shape(v)) for name, v in values.items()}
        return Invalid(values, {name: axes(name) for name in values}, masks)

    def with_simulated(sites: Sites) -> tuple[Guide, Args, Kwargs]:
        """The guide that is given what was simulated, and its arguments."""
        values = {}
        for name in observed:
            values[name] = sites[name]["value"]
            if exclude_invalid_x and simulations is None:  # what the guide says must be something
                given = get_argument(located[name], args, kwargs) if located else 0.0
                values[name] = failures(sites).replaced(values[name], axes(name), given)
        if by_site is not None:
            return by_site.given(values), args, kwargs
        new = {located[name]: value for name, value in values.items()}
        return guide, *replace_arguments(new, args, kwargs)

    may_fail = not exclude_invalid_x and simulations is None
    with failures(first).blamed(may_exclude=True) if may_fail else nullcontext():
        probe = first
        if simulations is not None:  # only names matter, and a run of the model may fail
            probe = {n: {**s, "value": _finite(s["value"])} for n, s in first.items()}
        given_guide, new_args, new_kwargs = with_simulated(probe)
        guide_trace = trace_of(rng_key, params, given_guide, new_args, new_kwargs)
    wanted = sites_to_rank(sites, guide_trace, first)

    def rank(rng_key: jax.Array, sites: Sites, own: Mapping[str, Any]) -> Any:
        """Truths, draws and what counts of them; and what failed."""
        given_guide, new_args, new_kwargs = with_simulated(sites)
        predictive = Predictive(
            given_guide,
            params=dict(params),
            num_samples=tally.num_draws,
            return_sites=wanted,
            parallel=parallel,
        )
        draws = predictive(rng_key, *new_args, **new_kwargs)
        # A run of its own, since what the guide masks may follow the data.
        proposed = trace_of(rng_key, params, given_guide, new_args, new_kwargs)
        ranked, invalid = {}, failures(sites)
        seen = jnp.zeros(invalid.total, bool)
        for name in wanted:
            truth, along = sites[name]["value"], axes(name)
            kept = kept_elements(name, proposed[name]).reshape(jnp.shape(truth)) & own[name]
            ranks = rows_first(kept, along).reshape(invalid.total, -1).any(-1)
            seen = seen | ranks
            if exclude_invalid_x and simulations is None:
                kept &= invalid.good(jnp.ndim(truth), along, [truth.shape[axis] for axis in along])
            ranked[name] = truth, draws[name].reshape(tally.num_draws, *jnp.shape(truth)), kept
        values = {name: sites[name]["value"] for name in observed}
        if not exclude_invalid_x:  # a guide may have masked them
            invalid = invalid.among(seen)
        return ranked, values, (invalid.rows, invalid.counts)

    def add(rng_key: jax.Array, ranked: Any, values: Any, number: int | None = None) -> None:
        run = {
            name: Ranked(truth, drawn, kept, axes(name))
            for name, (truth, drawn, kept) in ranked.items()
        }
        seen = [(value, axes(name)) for name, value in values.items()]
        tally.add(run, seen, numpy_seed(rng_key), number)

    if simulations is not None:
        second = sample_sites(_simulate(random.split(rng_key)[0], params, model, args, kwargs))

        def described(name: str) -> SiteOfTable:
            shape = jnp.shape(first[name]["value"])
            masks = [np.asarray(kept_elements(name, sites[name])) for sites in (first, second)]
            moves = not np.array_equal(masks[0], masks[1])
            return SiteOfTable(shape, axes(name), masks[0].reshape(shape), moves)

        needed = {name: described(name) for name in [*wanted, *observed]}
        table = TableRows(simulations, needed, observed)

        @jax.jit
        def rank_rows(rng_key: jax.Array, values: Any, kept: Any) -> Any:
            own = {
                name: jnp.asarray(value, jnp.result_type(first[name]["value"]))
                for name, value in values.items()
            }
            rows = {**first, **{n: {**first[n], "value": value} for n, value in own.items()}}
            return rank(rng_key, rows, kept)

        for rows in table:
            if tally.has_enough:
                return tally.report()
            rng_key, run_key, tie_key = random.split(rng_key, 3)
            ranked, values, _ = rank_rows(run_key, rows.values, rows.kept)
            add(tie_key, ranked, values, rows.number)
        return tally.report(recorded=True)

    @jax.jit
    def simulate(rng_key: jax.Array) -> Any:
        model_key, guide_key = random.split(rng_key)
        sites = sample_sites(_simulate(model_key, params, model, args, kwargs))
        return rank(guide_key, sites, {name: kept_elements(name, sites[name]) for name in wanted})

    while tally.wants_more:
        rng_key, run_key, tie_key = random.split(rng_key, 3)
        ranked, values, (bad, counts) = simulate(run_key)
        bad, counts = np.asarray(bad), {name: int(count) for name, count in counts.items() if count}
        if counts and not exclude_invalid_x:
            raise NonFiniteError(messages.failed(counts, len(bad), may_exclude=True))
        if counts:
            told(counts, len(bad))
        if not bad.all():
            add(tie_key, ranked, values)
        tally.leave_out(int(bad.sum()), len(bad))
    return tally.report()


def _simulate(rng_key: RngKey, params: Params, model: Model, args: Args, kwargs: Kwargs) -> Sites:
    return trace_of(rng_key, params, Unconditioned(model), args, kwargs)


def _finite(value: Any) -> jax.Array:
    return jnp.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)
