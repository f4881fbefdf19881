# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Evaluation that does not rely on a critic: log p(x) by importance weights, calibration by
simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, Independent, Unit
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import sum_rightmost
from pyro.infer import Predictive
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions import biject_to

from pyro_spread._inputs import takes_arrays
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.infer._invalid import Invalid
from pyro_spread.infer._sites import is_computed, is_implicit
from pyro_spread.infer._two_sides import _mask
from spread_analysis.calibration import CalibrationReport, Ranked, RankTally
from spread_analysis.log_evidence import (
    LogEvidence,
    Packing,
    Target,
    annealed_importance,
    any_of_datum,
    data_first,
    log_mean_exp,
)
from spread_core.arguments import (
    argument_name,
    get_argument,
    locate_data,
    replace_arguments,
)
from spread_core.messages import evaluation, players
from spread_core.messages.evaluation import masked_apart
from spread_core.nonfinite import Told
from spread_core.validation import as_count

__all__ = ["ais_log_likelihood", "importance_weighted_bound", "simulation_based_calibration"]


@unchanged_buffers()
@takes_arrays
def ais_log_likelihood(
    model: Callable[..., Any],
    *args: Any,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    num_leapfrog: int = 10,
    step_size: float = 0.1,
    vectorize_chains: bool = True,
    **kwargs: Any,
) -> LogEvidence:
    r"""
    :math:`\log p(x)` of a model with continuous latents by annealed importance sampling, in nats.

    No guide is needed, so models trained with and without a guide, and with any loss, can be
    compared: for decoders it is the accepted measure of test log-likelihood. Each datum has its own
    chains, which start at the prior and move by Hamiltonian Monte Carlo in unconstrained space; see
    :func:`spread_analysis.annealed_importance` for the method, and its sources.

    The model stays as it is. Data are the elements of the plates that all its sites share; where
    there are none, as with a global latent, it is one estimate for all data.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_spread import ais_log_likelihood
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> _ = pyro.set_rng_seed(0)
        >>> evidence = ais_log_likelihood(model, torch.tensor([0.0, 2.0]), num_temperatures=100)
        >>> bool(abs(evidence.values + torch.tensor([1.2655, 2.2655]).numpy()).max() < 0.1)
        True

    :param model: the model.
    :param args: its positional arguments; the data of interest, at most as many as fit into memory
        ``num_chains`` times.
    :param num_temperatures: intermediate densities; values of single data need a thousand or more.
    :param num_chains: chains, and weights, per datum; a quarter as many more tune step sizes.
    :param num_leapfrog: gradients per temperature; the cost is ``num_temperatures * num_leapfrog``
        gradients of the log-likelihood of all data and chains.
    :param step_size: of the first move; it adapts from there on.
    :param vectorize_chains: whether the model runs once for all chains, under ``torch.func.vmap``;
        False runs it chain by chain, for models that vmap refuses.
    :param kwargs: its keyword arguments.
    :return: values of the shape of the shared plates, with effective sample sizes.
    :raises ValueError: if the model observes nothing, has no latent or a scaled site, or if a datum
        has no finite likelihood.
    :raises NotImplementedError: if a latent is discrete.
    """
    chains = as_count(num_chains, "num_chains")
    with torch.no_grad():
        traces = [
            poutine.trace(model).get_trace(*args, **kwargs)
            for _ in range(chains + _num_pilots(chains))
        ]
    sites = _sites(traces[0])
    _check_evidence(sites)
    latents = [name for name, site in sites.items() if not site["is_observed"]]
    if not latents:
        raise ValueError(evaluation.nothing_latent(sites))
    dims = _shared_dims(sites.values())
    first: dict[str, torch.Tensor] = {}
    starts: dict[str, np.ndarray] = {}
    for name in latents:
        if sites[name]["fn"].support.is_discrete:
            raise NotImplementedError(evaluation.discrete_latent(name))
        draws = [_unconstrained(trace.nodes[name]) for trace in traces]
        first[name] = draws[0]
        starts[name] = torch.stack(draws).double().cpu().numpy()
    event_dims = {n: biject_to(sites[n]["fn"].support).domain.event_dim for n in latents}
    packing = Packing(
        {name: value.shape for name, value in first.items()},
        {name: [dim - event_dims[name] for dim in dims] for name in latents},
    )

    def densities(values: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        handler = _Unconstrained(values)
        trace = poutine.trace(handler(model)).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        prior: list[torch.Tensor] = []
        likelihood: list[torch.Tensor] = []
        for name, site in _sites(trace).items():
            terms = likelihood if site["is_observed"] else prior
            terms.append(_per_datum(site["log_prob"], dims))
            if name in handler.log_jacobians:
                prior.append(_per_datum(handler.log_jacobians[name], dims))
        return sum(prior), sum(likelihood)  # type: ignore[return-value]

    def target(vectors: np.ndarray) -> Target:
        values = {
            name: torch.as_tensor(value).to(first[name]).requires_grad_()
            for name, value in packing.unpack(vectors).items()
        }
        if vectorize_chains:
            prior, likelihood = torch.func.vmap(densities)(values)
        else:
            rows = [{n: v[i] for n, v in values.items()} for i in range(len(vectors))]
            prior, likelihood = map(torch.stack, zip(*map(densities, rows), strict=True))
        inputs = list(values.values())
        # A density that is constant in z, as of an observed Delta, has no graph of its own.
        zero = sum((0 * value).sum() for value in inputs)
        gradients = [
            packing.pack(dict(zip(values, map(_to_numpy, gradient), strict=True)))
            for gradient in (
                torch.autograd.grad(prior.sum() + zero, inputs, retain_graph=True),
                torch.autograd.grad(likelihood.sum() + zero, inputs),
            )
        ]
        shape = vectors.shape[:2]
        terms = (_to_numpy(term).reshape(shape) for term in (prior, likelihood))
        return Target(*terms, *gradients)

    # Values of latents are checked by what they make of the densities; vmap allows no other check.
    vectors = packing.pack(starts)
    with pyro.validation_enabled(False):
        evidence = annealed_importance(
            target,
            vectors[:chains],
            vectors[chains:],
            num_temperatures=num_temperatures,
            num_leapfrog=num_leapfrog,
            step_size=step_size,
            seed=int(torch.randint(2**31, ())),
        )
    evidence = evidence.reshape(packing.data_shape)
    return replace(evidence, observed=_observed(sites, dims))


@unchanged_buffers()
@torch.no_grad()
@takes_arrays
def importance_weighted_bound(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    **kwargs: Any,
) -> LogEvidence:
    r"""
    The importance-weighted bound on :math:`\log p(x)` through a guide that has a density, in nats.

    .. math::

        \log \frac{1}{K} \sum_k \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    (Burda et al. 2016, arXiv:1509.00519). A lower bound in expectation, which tightens with the
    number of samples if the guide covers the posterior; the effective sample size tells.

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_spread import importance_weighted_bound
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> bound = importance_weighted_bound(model, guide, torch.tensor([0.0, 2.0]), num_samples=9)
        >>> bound.values.round(4)  # the guide is exact here
        array([-1.2655, -2.2655])

    :param model: the model.
    :param guide: a guide all of whose sites have densities.
    :param args: positional arguments of both.
    :param num_samples: draws of the guide per datum.
    :param kwargs: keyword arguments of both.
    :return: values of the shape of the plates that all sites of model and guide share.
    :raises ValueError: if a site of the guide has no density, a site is scaled, or model and guide
        mask different elements of it; the message names it and says what to do.
    """
    log_weights = []
    for _ in range(as_count(num_samples, "num_samples")):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        proposed = _sites(guide_trace)
        _check_densities(proposed)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        sites = _sites(model_trace)
        _check_evidence(sites)
        _check_masks(sites, proposed)
        dims = _shared_dims([*sites.values(), *proposed.values()])
        model_trace.compute_log_prob()
        guide_trace.compute_log_prob()
        # A latent that the guide leaves out is proposed by its prior, which cancels.
        scored = [s for n, s in sites.items() if s["is_observed"] or n in proposed]
        weight: Any = sum(_per_datum(site["log_prob"], dims) for site in scored)
        for site in proposed.values():
            weight = weight - _per_datum(site["log_prob"], dims)
        log_weights.append(_to_numpy(weight))
    return replace(log_mean_exp(np.stack(log_weights)), observed=_observed(sites, dims))


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
    Rank true latents among the guide's draws given the data that they produced.

    Latents and data are drawn from the model, the guide sees the data in place of the real ones. If
    the guide is the posterior, the rank of the true latent among the guide's draws is uniform
    (Talts et al. 2018, arXiv:1804.06788). The guide may be implicit: it is only sampled. The
    elements of the plates that all sites share are separate simulations, so a batch costs one run.

    Elements that model or guide masks out are not ranked. Every simulation counts once: if the
    model repeats itself, for example because it reads its latents from a table, only one pass is
    made.

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
        simulated = _sites(trace)
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
        dims = _shared_dims(simulated.values())
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
            drawn_values = _to_numpy(draws[name]).reshape(tally.num_draws, *shape)
            kept = _kept(name, site) & _kept(name, proposed[name]).reshape(shape)
            axes = _axes(site, dims)
            good = invalid.good(len(shape), axes, [shape[axis] for axis in axes])
            kept = kept & np.asarray(good)
            if failed.by_site and not exclude_invalid_x:  # a guide may have masked them
                ranked = data_first(kept, axes).reshape(failed.total, -1).any(-1)
                failed.among(torch.as_tensor(ranked)).refuse(may_exclude=True)
            run[name] = Ranked(_to_numpy(site["value"]), drawn_values, kept, axes)
        seen = [(_to_numpy(site["value"]), _axes(site, dims)) for site in observed.values()]
        tally.add(run, seen, int(torch.randint(2**31, ())))
        tally.leave_out(invalid.num_bad, invalid.total)
    return tally.report()


def _axes(site: Mapping[str, Any], dims: Sequence[int]) -> list[int]:
    return [dim - site["fn"].event_dim for dim in dims]


def _invalid(observed: Mapping[str, Any], dims: Sequence[int]) -> Invalid:
    values = {name: site["value"] for name, site in observed.items()}
    masks = {name: _mask(name, site, site["value"]) for name, site in observed.items()}
    return Invalid(values, {n: _axes(site, dims) for n, site in observed.items()}, masks)


def _kept(name: str, site: Mapping[str, Any]) -> np.ndarray:
    """Elements of a site that no mask leaves out, of shape batch + event."""
    shape = torch.broadcast_shapes(site["fn"].shape(), site["value"].shape)
    mask = _mask(name, site, site["value"].expand(shape))
    return np.ones(shape, bool) if mask is None else mask.cpu().numpy()


class _Unconstrained(Messenger):
    """Latents take unconstrained values, and the volume that goes with each is kept."""

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._values = values
        self.log_jacobians: dict[str, torch.Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self._values:
            return
        # The support may depend on other latents, so that the transform is that of this run.
        transform, value = biject_to(fn.support), self._values[name]
        msg["value"], msg["done"] = transform(value), True
        log_jacobian = transform.log_abs_det_jacobian(value, msg["value"])
        extra = log_jacobian.dim() - msg["value"].dim() + fn.event_dim
        self.log_jacobians[name] = sum_rightmost(log_jacobian, extra)


def _unconstrained(site: Mapping[str, Any]) -> torch.Tensor:
    value: torch.Tensor = biject_to(site["fn"].support).inv(site["value"])
    return value


def _num_pilots(num_chains: int) -> int:
    return max(2, num_chains // 4)


def _sites(trace: Any) -> dict[str, Any]:
    """The sample sites of a trace that are latents or data, not bookkeeping."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not isinstance(site["fn"], _Subsample)
        and not is_computed(site, _observation(site))
    }


def _observation(site: Any) -> Any:
    """What a site observes, also where it was drawn again; None for a latent."""
    return site["infer"].get("obs", site["value"] if site["is_observed"] else None)


def _check_evidence(sites: Mapping[str, Any]) -> None:
    if not any(site["is_observed"] for site in sites.values()):
        raise ValueError(evaluation.no_evidence_sites())
    for name, site in sites.items():
        if bool(torch.as_tensor(site["scale"]).ne(1).any()):
            raise ValueError(evaluation.scaled_site(name))


def _check_densities(proposed: Mapping[str, Any]) -> None:
    # Deltas are fine as functions of auxiliary draws that have a density, as in AutoGuides.
    transformed = any(site["infer"].get("is_auxiliary") for site in proposed.values())
    for name, site in proposed.items():
        fn = site["fn"]
        while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
            fn = fn.base_dist
        if is_implicit(fn) or (isinstance(fn, Delta) and not transformed):
            raise ValueError(evaluation.density_free_guide(name))


def _check_masks(sites: Mapping[str, Any], proposed: Mapping[str, Any]) -> None:
    for name in proposed.keys() & sites.keys():
        if not np.array_equal(_kept(name, sites[name]), _kept(name, proposed[name])):
            raise ValueError(masked_apart(name))


def _observed(sites: Mapping[str, Any], dims: Sequence[int]) -> np.ndarray | None:
    """Of which data anything is observed, in the shape of the data; None if of all."""
    found = []
    for name, site in sites.items():
        if site["is_observed"]:
            axes = [dim - site["fn"].event_dim for dim in dims]
            found.append(any_of_datum(_kept(name, site), axes))
    observed: np.ndarray = np.logical_or.reduce(found)
    return None if observed.all() else observed


def _shared_dims(sites: Iterable[Any]) -> list[int]:
    """Dimensions of the plates around all sites, along which data come apart."""
    plates = [
        {(f.name, f.dim, f.size) for f in site["cond_indep_stack"] if f.vectorized}
        for site in sites
    ]
    return sorted(dim for _, dim, _ in set.intersection(*plates))


def _per_datum(log_prob: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    rest = [dim for dim in range(-log_prob.dim(), 0) if dim not in dims]
    return log_prob.sum(rest) if rest else log_prob


def _to_numpy(value: torch.Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()
