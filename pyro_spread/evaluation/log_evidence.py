# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""How probable the data are: annealed importance sampling and importance weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.poutine.messenger import Messenger
from torch.distributions import biject_to

from pyro_spread._inputs import takes_arrays
from pyro_spread._transaction import unchanged_buffers
from pyro_spread._typing import Guide, Model, Site
from pyro_spread.evaluation._sites import kept_elements, lacks_density, sample_sites
from spread_analysis.annealing import Packing, Target, anneal, num_starts
from spread_analysis.log_evidence import LogEvidence, log_mean_exp
from spread_core.evaluation import (
    check_densities,
    check_evidence,
    check_masks,
    continuous_latents,
    log_weight,
    observed_data,
    prior_and_likelihood,
    shared_dims,
)
from spread_core.validation import as_count, as_host


@unchanged_buffers()
@takes_arrays
def ais_log_likelihood(
    model: Model,
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
    number = num_starts(num_chains)
    with torch.no_grad():
        traces = [poutine.trace(model).get_trace(*args, **kwargs) for _ in range(number)]
    sites = sample_sites(traces[0])
    check_evidence(sites)
    first, starts, event_dims = {}, {}, {}
    for name in continuous_latents(sites):
        draws = [_unconstrained(trace.nodes[name]) for trace in traces]
        first[name], starts[name] = draws[0], as_host(torch.stack(draws))
        event_dims[name] = biject_to(sites[name]["fn"].support).domain.event_dim
    dims = shared_dims(sites.values())
    packing = Packing.of(starts, event_dims, dims)

    def densities(values: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        handler = _Unconstrained(values)
        trace = poutine.trace(handler(model)).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        return prior_and_likelihood(sample_sites(trace), handler.log_jacobians, dims, _log_prob)

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
            packing.pack(dict(zip(values, map(as_host, gradient), strict=True)))
            for gradient in (
                torch.autograd.grad(prior.sum() + zero, inputs, retain_graph=True),
                torch.autograd.grad(likelihood.sum() + zero, inputs),
            )
        ]
        shape = vectors.shape[:2]
        terms = (as_host(term).reshape(shape) for term in (prior, likelihood))
        return Target(*terms, *gradients)

    # Values of latents are checked by what they make of the densities; vmap allows no other check.
    with pyro.validation_enabled(False):
        evidence = anneal(
            target,
            packing,
            starts,
            num_chains,
            num_temperatures,
            num_leapfrog,
            step_size,
            seed=int(torch.randint(2**31, ())),
        )
    return replace(evidence, observed=observed_data(sites, dims, kept_elements))


@unchanged_buffers()
@torch.no_grad()
@takes_arrays
def importance_weighted_bound(
    model: Model,
    guide: Guide,
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
        check_densities(proposed, lacks_density)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        sites = sample_sites(model_trace)
        check_evidence(sites)
        check_masks(sites, proposed, kept_elements)
        dims = shared_dims([*sites.values(), *proposed.values()])
        model_trace.compute_log_prob()
        guide_trace.compute_log_prob()
        log_weights.append(as_host(log_weight(sites, proposed, dims, _log_prob)))
    observed = observed_data(sites, dims, kept_elements)
    return replace(log_mean_exp(np.stack(log_weights)), observed=observed)


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


def _unconstrained(site: Site) -> torch.Tensor:
    value: torch.Tensor = biject_to(site["fn"].support).inv(site["value"])
    return value


def _log_prob(site: Site) -> torch.Tensor:
    return site["log_prob"]
