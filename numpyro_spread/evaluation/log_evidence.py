# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""How probable the data are: annealed importance sampling and importance weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import random
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.handlers import replay

from numpyro_spread._inputs import takes_arrays
from numpyro_spread._typing import Guide, Model, Params, RngKey, Site, Sites
from numpyro_spread.evaluation._sites import (
    kept_elements,
    lacks_density,
    numpy_seed,
    sample_sites,
    trace_of,
)
from numpyro_spread.infer._scan import Inside
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

# End the names under which a value, and the volume of its change, leave the body of a scan.
_UNCONSTRAINED, _VOLUME = "$unconstrained", "$volume"


@takes_arrays
def ais_log_likelihood(
    rng_key: RngKey,
    params: Params,
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
    *start_keys, numpy_key = random.split(rng_key, num_starts(num_chains) + 1)
    traces, prior_draws = [], []
    for key in start_keys:
        start = _Start(model)
        traces.append(trace_of(key, params, start, args, kwargs))
        prior_draws.append(start.values)
    sites = sample_sites(traces[0])
    check_evidence(sites)
    starts, event_dims = {}, {}
    for name in continuous_latents(sites):
        starts[name] = np.stack([as_host(values[name]) for values in prior_draws])
        event_dims[name] = biject_to(sites[name]["fn"].support).domain.event_dim
    dims = shared_dims(sites.values())
    packing = Packing.of(starts, event_dims, dims)

    def densities(params: Any, values: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        handler = _Unconstrained(model, values)
        sites = sample_sites(trace_of(numpy_key, params, handler, args, kwargs))
        terms = prior_and_likelihood(sites, handler.log_jacobians, dims, _log_prob)
        return jnp.asarray(terms[0]), jnp.asarray(terms[1])

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
        terms = (as_host(term).reshape(shape) for term in (prior, likelihood))
        return Target(*terms, *map(packing.pack, gradients))

    evidence = anneal(
        target,
        packing,
        starts,
        num_chains,
        num_temperatures,
        num_leapfrog,
        step_size,
        seed=numpy_seed(numpy_key),
    )
    return replace(evidence, observed=observed_data(sites, dims, kept_elements))


@takes_arrays
def importance_weighted_bound(
    rng_key: RngKey,
    params: Params,
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

    def run(rng_key: jax.Array) -> tuple[Sites, Sites, list[int]]:
        guide_key, model_key = random.split(rng_key)
        guide_trace = trace_of(guide_key, params, guide, args, kwargs)
        proposed = sample_sites(guide_trace)
        replayed = replay(model, trace=guide_trace)
        sites = sample_sites(trace_of(model_key, params, replayed, args, kwargs))
        return sites, proposed, shared_dims([*sites.values(), *proposed.values()])

    def weigh(rng_key: jax.Array) -> jax.Array:
        return jnp.asarray(log_weight(*run(rng_key), _log_prob))

    keys = random.split(rng_key, as_count(num_samples, "num_samples"))
    sites, proposed, dims = run(rng_key)  # scales and masks are concrete only outside jit
    check_densities(proposed, lacks_density)
    check_evidence(sites)
    check_masks(sites, proposed, kept_elements)
    evidence = log_mean_exp(jax.jit(lambda keys: jax.lax.map(weigh, keys))(keys))
    return replace(evidence, observed=observed_data(sites, dims, kept_elements))


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


def _log_prob(site: Site) -> jax.Array:
    return jnp.asarray(site["fn"].log_prob(site["value"]))
