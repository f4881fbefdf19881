# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Draw pairs of data and latents, from the guide and from the model run forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.distributions import Unit
from numpyro.handlers import seed, substitute, trace

from numpyro_spread.infer._datum import (
    data_dims,
    data_plate,
    frames_of,
    parts_left_out,
    weight_of_data,
)
from numpyro_spread.infer._own_draws import refuse_own_draws
from numpyro_spread.infer._plate_arguments import by_datum
from numpyro_spread.infer._scan import Unconditioned
from numpyro_spread.infer._shared_latents import warn_of_shared_latents
from numpyro_spread.infer._sites import is_implicit
from numpyro_spread.infer._two_sides import (
    Guarded,
    Side,
    check_draws,
    check_noise_sites,
    is_compared,
    refuse_nonfinite,
)
from numpyro_spread.noise import SpreadNoise
from numpyro_spread.ratio.adapters import SiteValues
from spread_core.arguments import positional_names
from spread_core.messages import contrasts, players
from spread_core.noise.levels import refuse_asking
from spread_core.patterns import resolved


class JointSides(NamedTuple):
    """
    Pairs (x, z) of guide and model, after the noise, with weights or None.

    ``log_globals`` is log p - log q of the latents outside the plates of the data, in nats;
    ``scales`` is by how much each pair stands for more data; ``mutable`` is new mutable state.
    """

    guide: SiteValues
    model: SiteValues
    guide_weights: jax.Array | None
    model_weights: jax.Array | None
    log_globals: jax.Array
    global_sites: tuple[str, ...]
    scales: jax.Array
    mutable: dict[str, Any]


def draw_joint(
    rng_key: jax.Array,
    params: Mapping[str, Any],
    model: Callable[..., Any],
    guide: Callable[..., Any],
    noise: Mapping[str, SpreadNoise],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    watch: AbstractContextManager[Any] | None = None,
) -> JointSides:
    """
    Run guide and model once: data with the guide's latents, and the model's latents with their x.

    Latents of the guide outside the plates of the data are global: both sides share the guide's
    draws, and they keep their densities.

    :param rng_key: random key.
    :param params: values of param and mutable sites.
    :param model: the model.
    :param guide: the guide.
    :param noise: dict from site to the kernel that the model's draws pass through; what is
        observed has passed through it already.
    :param args: positional arguments of model and guide.
    :param kwargs: keyword arguments of both.
    :param watch: to be around the model, if any.
    :raises ValueError: if sites, plates, masks and noise are inconsistent.
    """
    guide_key, model_key, noise_key = random.split(rng_key, 3)
    guide_trace = run(guide, guide_key, params, {}, args, kwargs)
    plates = data_plates(model, model_key, params, args, kwargs)
    drawn = {name: site for name, site in guide_trace.items() if is_latent(site)}
    shared = {n: s for n, s in drawn.items() if plates and not plates_of(s) & plates}
    indices = {n: s["value"] for n, s in guide_trace.items() if s["type"] == "plate"}
    fixed = indices | {name: site["value"] for name, site in shared.items()}
    # What globals do to the model's pairs is no part of the gradient: the critic sees them.
    with watch or nullcontext():
        sites = run_forward(model, model_key, params, lax.stop_gradient(fixed), args, kwargs)
    observed = {name: site for name, site in sites.items() if is_compared(site)}
    if not observed:
        raise ValueError(players.nothing_observed())
    for name, site in observed.items():
        if isinstance(site["fn"], Unit):
            raise ValueError(players.factor_site(name))
    refuse_own_draws(params, model, observed, args, kwargs)
    noise = resolved(noise, observed)
    refuse_asking(noise, args, kwargs, model, guide)
    check_noise_sites(sites, observed, noise)
    local = {
        name: sites[name]
        for name in drawn
        if name not in shared and is_latent(sites.get(name, {"type": None}))
    }
    if not local:
        raise ValueError(contrasts.joint_no_latent(drawn))
    compared = observed | local
    dims = data_dims(compared)
    warn_of_shared_latents(model, sites, compared, dims, drawn)

    def of_guide(site: Mapping[str, Any]) -> Any:
        name = site["name"]
        return site["infer"]["obs"] if name in observed else drawn[name]["value"]

    keys = random.split(noise_key)
    guide_side = Side(keys[0], compared, {}, dims, of_guide)
    model_side = Side(keys[1], compared, noise, dims, lambda site: site["value"])
    for name in observed:
        refuse_nonfinite(name, guide_side.values[name])
    check_draws(model_side)
    batch, traced = guide_side.batch_shape, sites | guide_trace
    named = dict(zip(positional_names(model), args, strict=False)) | kwargs
    arguments = by_datum(named, compared, dims, traced, batch)
    for name, site in shared.items():
        arguments[name] = jnp.broadcast_to(site["value"], (*batch, *jnp.shape(site["value"])))
    detached = {name: lax.stop_gradient(arguments[name]) for name in shared}
    dtype = jnp.result_type(*guide_side.values.values(), jnp.float32)
    name, first = next(iter(local.items()))
    scale = weight_of_data(name, first, dims[name], batch)
    return JointSides(
        SiteValues(guide_side.values, batch, arguments),
        SiteValues(model_side.values, model_side.batch_shape, arguments | detached),
        guide_side.weights,
        model_side.weights,
        _log_globals(model, model_key, params, fixed, shared, args, kwargs),
        tuple(shared),
        jnp.asarray(scale, dtype) / parts_left_out(first, traced),
        {
            name: site["value"]
            for name, site in [*guide_trace.items(), *sites.items()]
            if site["type"] == "mutable"
        },
    )


def run(
    fn: Callable[..., Any],
    rng_key: jax.Array,
    params: Mapping[str, Any],
    fixed: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """
    The sites of a model or guide.

    :param fn: model or guide.
    :param rng_key: random key.
    :param params: values of param and mutable sites.
    :param fixed: values of latents and plates that are not drawn.
    :param args: positional arguments.
    :param kwargs: keyword arguments.
    """
    # Containers are copied, since a model may write to those of mutable sites.
    params = jax.tree.map(lambda leaf: leaf, dict(params))
    bound = substitute(substitute(fn, data=params), data=dict(fixed))
    with trace() as sites, Guarded():
        seed(bound, rng_key)(*args, **kwargs)
    return dict(sites)


def run_forward(
    model: Callable[..., Any],
    rng_key: jax.Array,
    params: Mapping[str, Any],
    fixed: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """Like :func:`run`, with draws instead of observations; what was observed is in ``infer``."""
    return run(Unconditioned(model), rng_key, params, fixed, args, kwargs)


def is_latent(site: Mapping[str, Any]) -> bool:
    """Whether a site of a trace is a draw and not data."""
    return site["type"] == "sample" and not site["is_observed"] and not is_compared(site)


def plates_of(site: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(frame.name for frame in frames_of(site))


def data_plates(
    model: Callable[..., Any],
    rng_key: jax.Array,
    params: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> frozenset[str]:
    """Names of the plates that count what the model observes; it is traced, nothing is computed."""
    found: list[str | None] = []

    def look(key: jax.Array) -> None:
        sites = run_forward(model, key, params, {}, args, kwargs).values()
        found.extend(data_plate(site) for site in sites if is_compared(site))

    jax.eval_shape(look, rng_key)
    return frozenset(plate for plate in found if plate is not None)


def _log_globals(
    model: Callable[..., Any],
    rng_key: jax.Array,
    params: Mapping[str, Any],
    fixed: Mapping[str, Any],
    shared: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> jax.Array:
    """Log p - log q of the global latents, with the gradient of both in the guide's draws."""
    total = jnp.zeros(())
    if not shared:
        return total
    for name, site in shared.items():
        if is_implicit(site["fn"]):
            raise ValueError(contrasts.joint_global_implicit(name))
        total = total - _log_prob(site)
    sites = run_forward(model, rng_key, params, fixed, args, kwargs)
    for name in shared:
        if name in sites:
            total = total + _log_prob(sites[name])
    return total


def _log_prob(site: Mapping[str, Any]) -> jax.Array:
    scale = 1.0 if site["scale"] is None else site["scale"]
    return jnp.sum(scale * site["fn"].log_prob(site["value"]))
