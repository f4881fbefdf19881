# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""How probable the data are: annealed importance sampling and importance weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, Independent
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch.distributions import biject_to

from pyro_spread._inputs import takes_arrays
from pyro_spread._transaction import unchanged_buffers
from pyro_spread.evaluation._sites import kept_elements, sample_sites, shared_dims, to_numpy
from pyro_spread.infer._sites import is_implicit
from spread_analysis.log_evidence import (
    LogEvidence,
    Packing,
    Target,
    annealed_importance,
    any_of_datum,
    log_mean_exp,
)
from spread_core.messages import evaluation
from spread_core.messages.evaluation import masked_apart
from spread_core.validation import as_count


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
    sites = sample_sites(traces[0])
    _check_evidence(sites)
    latents = [name for name, site in sites.items() if not site["is_observed"]]
    if not latents:
        raise ValueError(evaluation.nothing_latent(sites))
    dims = shared_dims(sites.values())
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
        for name, site in sample_sites(trace).items():
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
            packing.pack(dict(zip(values, map(to_numpy, gradient), strict=True)))
            for gradient in (
                torch.autograd.grad(prior.sum() + zero, inputs, retain_graph=True),
                torch.autograd.grad(likelihood.sum() + zero, inputs),
            )
        ]
        shape = vectors.shape[:2]
        terms = (to_numpy(term).reshape(shape) for term in (prior, likelihood))
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
        proposed = sample_sites(guide_trace)
        _check_densities(proposed)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        sites = sample_sites(model_trace)
        _check_evidence(sites)
        _check_masks(sites, proposed)
        dims = shared_dims([*sites.values(), *proposed.values()])
        model_trace.compute_log_prob()
        guide_trace.compute_log_prob()
        # A latent that the guide leaves out is proposed by its prior, which cancels.
        scored = [s for n, s in sites.items() if s["is_observed"] or n in proposed]
        weight: Any = sum(_per_datum(site["log_prob"], dims) for site in scored)
        for site in proposed.values():
            weight = weight - _per_datum(site["log_prob"], dims)
        log_weights.append(to_numpy(weight))
    return replace(log_mean_exp(np.stack(log_weights)), observed=_observed(sites, dims))


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
        if not np.array_equal(
            kept_elements(name, sites[name]), kept_elements(name, proposed[name])
        ):
            raise ValueError(masked_apart(name))


def _observed(sites: Mapping[str, Any], dims: Sequence[int]) -> np.ndarray | None:
    """Of which data anything is observed, in the shape of the data; None if of all."""
    found = []
    for name, site in sites.items():
        if site["is_observed"]:
            axes = [dim - site["fn"].event_dim for dim in dims]
            found.append(any_of_datum(kept_elements(name, site), axes))
    observed: np.ndarray = np.logical_or.reduce(found)
    return None if observed.all() else observed


def _per_datum(log_prob: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    rest = [dim for dim in range(-log_prob.dim(), 0) if dim not in dims]
    return log_prob.sum(rest) if rest else log_prob
