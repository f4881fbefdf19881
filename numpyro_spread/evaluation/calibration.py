# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Is a guide calibrated? Its ranks over data sets that the model simulates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.distributions import (
    Unit,
)
from numpyro.infer import Predictive

from numpyro_spread._inputs import takes_arrays
from numpyro_spread.evaluation._sites import (
    kept_elements,
    numpy_seed,
    sample_sites,
    shared_dims,
    trace_of,
)
from numpyro_spread.infer._invalid import Invalid, rows_first
from numpyro_spread.infer._scan import Unconditioned
from numpyro_spread.infer._two_sides import mask_at
from spread_analysis.calibration import CalibrationReport, Ranked, RankTally
from spread_core.arguments import (
    argument_name,
    get_argument,
    locate_data,
    replace_arguments,
)
from spread_core.messages import evaluation, players, simulations
from spread_core.nonfinite import NonFiniteError, Told


@takes_arrays
def simulation_based_calibration(
    rng_key: jax.Array,
    params: Mapping[str, Any],
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
    :param guide: an amortised guide: it must depend on the data through its arguments.
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
    :param kwargs: keyword arguments of both.
    :return: the ranks, with their test; :func:`spread_analysis.plot_sbc` shows them.
    :raises ValueError: if an observed site does not fit the argument that carries its data,
        ``sites`` are none that both have, or all of a site is masked; the message names them.
    """
    tally, told = RankTally(num_simulations, num_draws), Told()
    first = sample_sites(_simulate(rng_key, params, model, args, kwargs))
    observed = {n: s for n, s in first.items() if s["infer"].get("was_observed")}
    for name, site in observed.items():
        if isinstance(site["fn"], Unit):
            raise ValueError(players.factor_site(name))
    located = locate_data(model, observed, args, kwargs, data)
    for name, key in located.items():
        given, value = get_argument(key, args, kwargs), observed[name]["value"]
        if np.shape(given) != value.shape:
            argument, shapes = argument_name(key, model), (value.shape, np.shape(given))
            raise ValueError(evaluation.simulated_misfit(name, argument, *shapes))

    dims = shared_dims(first.values())

    def axes(name: str) -> list[int]:
        return [dim - first[name]["fn"].event_dim for dim in dims]

    def failures(sites: Mapping[str, Any]) -> Invalid:
        values = {name: sites[name]["value"] for name in observed}
        masks = {name: mask_at(name, sites[name], jnp.shape(v)) for name, v in values.items()}
        return Invalid(values, {name: axes(name) for name in values}, masks)

    def with_simulated(sites: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        values = {}
        for name, key in located.items():
            values[key] = sites[name]["value"]
            if exclude_invalid_x:  # what the guide says of them must be something
                given = get_argument(key, args, kwargs)
                values[key] = failures(sites).replaced(values[key], axes(name), given)
        return replace_arguments(values, args, kwargs)

    with nullcontext() if exclude_invalid_x else failures(first).blamed(may_exclude=True):
        guide_trace = trace_of(rng_key, params, guide, *with_simulated(first))
    drawn = [name for name in guide_trace if name in first]
    wanted = drawn if sites is None else list(sites)
    if not wanted or not set(wanted) <= set(drawn):
        raise ValueError(evaluation.no_calibration_sites(wanted, drawn))
    predictive = Predictive(
        guide,
        params=dict(params),
        num_samples=tally.num_draws,
        return_sites=wanted,
        parallel=parallel,
    )

    @jax.jit
    def simulate(rng_key: jax.Array) -> Any:
        model_key, guide_key = random.split(rng_key)
        sites = sample_sites(_simulate(model_key, params, model, args, kwargs))
        new_args, new_kwargs = with_simulated(sites)
        draws = predictive(guide_key, *new_args, **new_kwargs)
        # A run of its own, since what the guide masks may follow the data.
        proposed = trace_of(guide_key, params, guide, new_args, new_kwargs)
        ranked, invalid = {}, failures(sites)
        seen = jnp.zeros(invalid.total, bool)
        for name in wanted:
            truth, own = sites[name]["value"], axes(name)
            kept = kept_elements(name, proposed[name]).reshape(jnp.shape(truth)) & kept_elements(
                name, sites[name]
            )
            ranks = rows_first(kept, own).reshape(invalid.total, -1).any(-1)
            seen = seen | ranks
            if exclude_invalid_x:
                kept &= invalid.good(jnp.ndim(truth), own, [truth.shape[axis] for axis in own])
            ranked[name] = truth, draws[name], kept
        values = {name: sites[name]["value"] for name in observed}
        if not exclude_invalid_x:  # a guide may have masked them
            invalid = invalid.among(seen)
        return ranked, values, (invalid.rows, invalid.counts)

    while tally.wants_more:
        rng_key, run_key, tie_key = random.split(rng_key, 3)
        ranked, values, (bad, counts) = simulate(run_key)
        bad, counts = np.asarray(bad), {name: int(count) for name, count in counts.items() if count}
        if counts and not exclude_invalid_x:
            raise NonFiniteError(simulations.failed(counts, len(bad), may_exclude=True))
        if counts:
            told(counts, len(bad))
        if not bad.all():
            run = {
                name: Ranked(truth, drawn, kept, axes(name))
                for name, (truth, drawn, kept) in ranked.items()
            }
            seen = [(value, axes(name)) for name, value in values.items()]
            tally.add(run, seen, numpy_seed(tie_key))
        tally.leave_out(int(bad.sum()), len(bad))
    return tally.report()


def _simulate(
    rng_key: jax.Array,
    params: Mapping[str, Any],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    return trace_of(rng_key, params, Unconditioned(model), args, kwargs)
