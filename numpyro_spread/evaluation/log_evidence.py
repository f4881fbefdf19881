# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""How probable the data are: annealed importance sampling and importance weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import random
from numpyro.distributions import (
    Delta,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    biject_to,
)
from numpyro.distributions.util import sum_rightmost
from numpyro.handlers import replay

from numpyro_spread._inputs import takes_arrays
from numpyro_spread.evaluation._sites import (
    kept_elements,
    numpy_seed,
    sample_sites,
    shared_dims,
    trace_of,
)
from numpyro_spread.infer._scan import Inside
from numpyro_spread.infer._sites import is_implicit
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

# End the names under which a value, and the volume of its change, leave the body of a scan.
_UNCONSTRAINED, _VOLUME = "$unconstrained", "$volume"


@takes_arrays
def ais_log_likelihood(
    rng_key: jax.Array,
    params: Mapping[str, Any],
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

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro_spread import ais_log_likelihood
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> evidence = ais_log_likelihood(
        ...     jax.random.key(0), {}, model, jnp.array([0.0, 2.0]), num_temperatures=100
        ... )
        >>> bool(abs(evidence.values + jnp.array([1.2655, 2.2655])).max() < 0.1)
        True

    :param rng_key: random key.
    :param params: dict from param site to value, as ``svi.get_params(state)``.
    :param model: the model.
    :param args: its positional arguments; the data of interest, at most as many as fit into memory
        ``num_chains`` times.
    :param num_temperatures: intermediate densities; values of single data need a thousand or more.
    :param num_chains: chains, and weights, per datum; a quarter as many more tune step sizes.
    :param num_leapfrog: gradients per temperature; the cost is ``num_temperatures * num_leapfrog``
        gradients of the log-likelihood of all data and chains.
    :param step_size: of the first move; it adapts from there on.
    :param vectorize_chains: whether the model runs once for all chains, under ``jax.vmap``; False
        runs it chain by chain, which takes less memory.
    :param kwargs: its keyword arguments.
    :return: values of the shape of the shared plates, with effective sample sizes.
    :raises ValueError: if the model observes nothing, has no latent or a scaled site, or if a datum
        has no finite likelihood.
    :raises NotImplementedError: if a latent is discrete.
    """
    chains = as_count(num_chains, "num_chains")
    *start_keys, numpy_key = random.split(rng_key, chains + _num_pilots(chains) + 1)
    traces, prior_draws = [], []
    for key in start_keys:
        start = _Start(model)
        traces.append(trace_of(key, params, start, args, kwargs))
        prior_draws.append(start.values)
    sites = sample_sites(traces[0])
    _check_evidence(sites)
    latents = [name for name, site in sites.items() if not site["is_observed"]]
    if not latents:
        raise ValueError(evaluation.nothing_latent(sites))
    dims = shared_dims(sites.values())
    starts: dict[str, np.ndarray] = {}
    axes = {}
    for name in latents:
        support = sites[name]["fn"].support
        if support.is_discrete:
            raise NotImplementedError(evaluation.discrete_latent(name))
        draws = [values[name] for values in prior_draws]
        starts[name] = np.stack([np.asarray(draw, np.float64) for draw in draws])
        axes[name] = [dim - biject_to(support).domain.event_dim for dim in dims]
    packing = Packing({name: value.shape[1:] for name, value in starts.items()}, axes)

    def densities(params: Any, values: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        handler = _Unconstrained(model, values)
        prior: list[jax.Array] = []
        likelihood: list[jax.Array] = []
        for name, site in sample_sites(trace_of(numpy_key, params, handler, args, kwargs)).items():
            terms = likelihood if site["is_observed"] else prior
            terms.append(_per_datum(_log_prob(site), dims))
            if name in handler.log_jacobians:
                prior.append(_per_datum(handler.log_jacobians[name], dims))
        return jnp.asarray(sum(prior)), jnp.asarray(sum(likelihood))

    def with_gradients(params: Any, values: dict[str, jax.Array]) -> Any:
        (prior, likelihood), pull = jax.vjp(lambda v: densities(params, v), values)
        one, zero = jnp.ones_like(prior), jnp.zeros_like(prior)
        return prior, likelihood, pull((one, zero))[0], pull((zero, one))[0]

    @jax.jit
    def all_chains(params: Any, values: dict[str, jax.Array]) -> Any:
        def one_chain(values: dict[str, jax.Array]) -> Any:
            return with_gradients(params, values)

        return jax.vmap(one_chain)(values) if vectorize_chains else jax.lax.map(one_chain, values)

    def target(vectors: np.ndarray) -> Target:
        prior, likelihood, *gradients = all_chains(dict(params), packing.unpack(vectors))
        shape = vectors.shape[:2]
        prior, likelihood = (np.asarray(t, np.float64).reshape(shape) for t in (prior, likelihood))
        return Target(prior, likelihood, *map(packing.pack, gradients))

    vectors = packing.pack(starts)
    evidence = annealed_importance(
        target,
        vectors[:chains],
        vectors[chains:],
        num_temperatures=num_temperatures,
        num_leapfrog=num_leapfrog,
        step_size=step_size,
        seed=numpy_seed(numpy_key),
    )
    evidence = evidence.reshape(packing.data_shape)
    return replace(evidence, observed=_observed(sites, dims))


@takes_arrays
def importance_weighted_bound(
    rng_key: jax.Array,
    params: Mapping[str, Any],
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

        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro_spread import importance_weighted_bound
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = jnp.array([0.0, 2.0])
        >>> bound = importance_weighted_bound(
        ...     jax.random.key(0), {}, model, guide, x, num_samples=9
        ... )
        >>> bound.values.round(4)  # the guide is exact here
        array([-1.2655, -2.2655])

    :param rng_key: random key.
    :param params: dict from param site to value, as ``svi.get_params(state)``.
    :param model: the model.
    :param guide: a guide all of whose sites have densities.
    :param args: positional arguments of both.
    :param num_samples: draws of the guide per datum.
    :param kwargs: keyword arguments of both.
    :return: values of the shape of the plates that all sites of model and guide share.
    :raises ValueError: if a site of the guide has no density, a site is scaled, or model and guide
        mask different elements of it; the message names it and says what to do.
    """

    def run(rng_key: jax.Array) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
        guide_key, model_key = random.split(rng_key)
        guide_trace = trace_of(guide_key, params, guide, args, kwargs)
        proposed = sample_sites(guide_trace)
        replayed = replay(model, trace=guide_trace)
        sites = sample_sites(trace_of(model_key, params, replayed, args, kwargs))
        return sites, proposed, shared_dims([*sites.values(), *proposed.values()])

    def log_weight(rng_key: jax.Array) -> jax.Array:
        sites, proposed, dims = run(rng_key)
        # A latent that the guide leaves out is proposed by its prior, which cancels.
        scored = [s for n, s in sites.items() if s["is_observed"] or n in proposed]
        weight: Any = sum(_per_datum(_log_prob(site), dims) for site in scored)
        for site in proposed.values():
            weight = weight - _per_datum(_log_prob(site), dims)
        return jnp.asarray(weight)

    samples = as_count(num_samples, "num_samples")
    sites, proposed, dims = run(rng_key)  # scales and masks are concrete only outside jit
    _check_densities(proposed)
    _check_evidence(sites)
    _check_masks(sites, proposed)
    evidence = log_mean_exp(
        jax.jit(lambda keys: jax.lax.map(log_weight, keys))(random.split(rng_key, samples))
    )
    return replace(evidence, observed=_observed(sites, dims))


class _Start(Inside):
    """Notes unconstrained values, with the support that a site has where it stands."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__(fn)
        self.values: dict[str, jax.Array] = {}

    def leave(self, msg: Any) -> None:
        """Carry the value out of a body."""
        if _is_continuous_latent(msg):
            value = biject_to(msg["fn"].support).inv(msg["value"])
            numpyro.deterministic(msg["name"] + _UNCONSTRAINED, value)

    def postprocess_message(self, msg: Any) -> None:
        """Note the value."""
        super().postprocess_message(msg)
        if msg["type"] == "deterministic" and msg["name"].endswith(_UNCONSTRAINED):
            self.values[msg["name"].removesuffix(_UNCONSTRAINED)] = msg["value"]
        elif not msg.get("_control_flow_done") and _is_continuous_latent(msg):
            self.values[msg["name"]] = biject_to(msg["fn"].support).inv(msg["value"])


def _is_continuous_latent(msg: Any) -> bool:
    latent = msg["type"] == "sample" and not msg["is_observed"]
    return latent and not msg["fn"].support.is_discrete


class _Unconstrained(Inside):
    """Latents take unconstrained values, and the volume that goes with each is kept."""

    def __init__(self, fn: Callable[..., Any], values: Mapping[str, jax.Array]) -> None:
        super().__init__(fn)
        self._values = values
        self.log_jacobians: dict[str, jax.Array] = {}

    def visit(self, msg: Any, inside: bool) -> None:
        """Give the site its value."""
        if msg["name"] not in self._values:
            return
        name, fn, value = msg["name"], msg["fn"], self._values[msg["name"]]
        step = msg["infer"].get("_scan_current_index")
        if step is not None:
            value = value[step]
        # The support may depend on other latents, so that the transform is that of this run.
        transform = biject_to(fn.support)
        msg["value"] = transform(value)
        log_jacobian = transform.log_abs_det_jacobian(value, msg["value"])
        extra = jnp.ndim(log_jacobian) - jnp.ndim(msg["value"]) + fn.event_dim
        log_jacobian = sum_rightmost(log_jacobian, extra)
        if inside:
            numpyro.deterministic(name + _VOLUME, log_jacobian)
        else:
            self.log_jacobians[name] = log_jacobian

    def postprocess_message(self, msg: Any) -> None:
        """Take what comes out of a body."""
        super().postprocess_message(msg)
        if msg["type"] == "deterministic" and msg["name"].endswith(_VOLUME):
            self.log_jacobians[msg["name"].removesuffix(_VOLUME)] = msg["value"]


def _num_pilots(num_chains: int) -> int:
    return max(2, num_chains // 4)


def _check_evidence(sites: Mapping[str, Any]) -> None:
    if not any(site["is_observed"] for site in sites.values()):
        raise ValueError(evaluation.no_evidence_sites())
    for name, site in sites.items():
        if site["scale"] is not None and np.any(np.asarray(site["scale"]) != 1):
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
            found.append(any_of_datum(np.asarray(kept_elements(name, site)), axes))
    observed: np.ndarray = np.logical_or.reduce(found)
    return None if observed.all() else observed


def _log_prob(site: Mapping[str, Any]) -> jax.Array:
    return jnp.asarray(site["fn"].log_prob(site["value"]))


def _per_datum(log_prob: jax.Array, dims: Sequence[int]) -> jax.Array:
    rest = tuple(dim for dim in range(-jnp.ndim(log_prob), 0) if dim not in dims)
    return jnp.sum(log_prob, rest)
