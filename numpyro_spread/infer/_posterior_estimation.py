# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The loss of neural posterior estimation: minus the guide's log density at simulated latents."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_spread.infer._datum import data_dims, is_one, parts_left_out
from numpyro_spread.infer._invalid import Invalid, note
from numpyro_spread.infer._joint_sides import is_latent, run
from numpyro_spread.infer._noise import draw_at
from numpyro_spread.infer._simulated import (
    Row,
    Rows,
    Simulated,
    failed_simulations,
    simulate_once,
)
from numpyro_spread.infer._sites import is_black_box, is_implicit, mask_of_batch, plain_name
from numpyro_spread.infer._two_sides import check_noise_sites
from numpyro_spread.noise import SpreadNoise
from spread_core.arguments import get_argument, locate_data, replace_arguments
from spread_core.messages import contrasts
from spread_core.paths import Where
from spread_core.patterns import resolved
from spread_core.simulated import given, known_data_sites


def minus_log_q(
    rng_key: jax.Array,
    params: Mapping[str, Any],
    model: Callable[..., Any],
    guide: Callable[..., Any],
    noise: Mapping[str, SpreadNoise],
    data: Mapping[str, Where],
    exclude: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rows: Rows | None = None,
    row: Row | None = None,
) -> tuple[jax.Array, dict[str, Any], jax.Array]:
    """
    Minus the log density of the guide at the model's latents, given their data.

    :param rng_key: random key.
    :param params: values of param and mutable sites.
    :param model: the model.
    :param guide: the guide, all of whose sites have a density.
    :param noise: dict from observed site to the kernel that simulated data pass through.
    :param data: dict from site to the name of the model argument that carries its data.
    :param exclude: whether simulations that are NaN or inf are left out; else they are an error.
    :param args: positional arguments of model and guide.
    :param kwargs: keyword arguments of both.
    :param rows: of a table, instead of which the model is not run.
    :param row: one of them.
    :return: a scalar in nats, the mean over the data; new mutable state; and whether anything is
        left of the run.
    :raises ValueError: if sites and data are inconsistent, or a site has no density.
    """
    model_key, noise_key, guide_key = random.split(rng_key, 3)
    known = known_data_sites(guide, args, kwargs)
    if rows is None or row is None:
        run_of = simulate_once(model_key, params, model, known, args, kwargs)
        invalid, axes = failed_simulations(run_of)
    else:
        run_of, exclude = rows.run(row), False  # what failed is not among them
        invalid, axes = Invalid({}, {}), {}
    values = _data_of_guide(noise_key, run_of, noise, invalid, axes, exclude)
    if known is None:
        located = locate_data(model, run_of.observed, args, kwargs, data)
        for site, key in located.items():
            held = get_argument(key, args, kwargs)
            if held is not None and jnp.shape(held) != jnp.shape(values[site]):
                shapes = jnp.shape(run_of.data[site]), jnp.shape(held)
                raise ValueError(contrasts.joint_simulated_shape(site, *shapes))
        at = {key: values[site] for site, key in located.items()}
        args, kwargs = replace_arguments(at, args, kwargs)
    else:
        guide = given(guide, values, run_of.masks)
    latents = run_of.latents
    if exclude:
        local = axes.keys() & latents.keys()
        latents = latents | {n: invalid.replaced(latents[n], axes[n], latents[n]) for n in local}
    with contextlib.nullcontext() if exclude else invalid.blamed(may_exclude=True):
        scored = run(guide, guide_key, params, latents | run_of.indices, args, kwargs)
    if rows is not None:
        rows.check(_lacking(scored, run_of))
    sites = {n: s for n, s in scored.items() if n in latents and s["type"] == "sample"}
    if not sites:
        raise ValueError(contrasts.joint_no_latent(scored))
    drawn_with = {**run_of.observed, **{name: run_of.sites[name] for name in sites}}
    one = is_one(drawn_with)
    dims = dict.fromkeys(drawn_with) if one else data_dims(drawn_with)
    total, seen = jnp.zeros(()), jnp.zeros(invalid.total, bool)
    for name, site in sites.items():
        # At the model's latents a Delta is worth minus infinity.
        without = is_implicit(site["fn"]) or is_black_box(site["fn"])
        if without or plain_name(site["fn"]) == "Delta":
            raise ValueError(contrasts.joint_needs_density(name))
        log_prob = site["fn"].log_prob(site["value"])
        scale = 1.0 if site["scale"] is None else site["scale"]
        weights = scale * mask_of_batch(site["fn"]) * jnp.ones(jnp.shape(log_prob))
        seen = seen | _of_data(weights > 0, dims[name])
        dim = dims[name]
        if exclude and dim is not None:
            good = invalid.good(jnp.ndim(log_prob), [dim], [log_prob.shape[dim]])
            log_prob, weights = jnp.where(good, log_prob, 0), jnp.where(good, weights, 0)
        rest = tuple(dim for dim in range(-weights.ndim, 0) if dim != dims[name])
        count = weights.max(rest).sum() / parts_left_out(site, scored, one)
        total = total - (scale * log_prob).sum() / jnp.maximum(1.0, count)
    mutable = run_of.mutable | {n: s["value"] for n, s in scored.items() if s["type"] == "mutable"}
    is_left = jnp.array(True)
    if exclude:  # data that share a draw are left out together
        is_left = ~(invalid.rows.any() if one else invalid.none_good)
    else:  # a guide may have masked them
        invalid = invalid.among(seen)
        invalid.refuse(may_exclude=True)
    note(invalid.counts, invalid.total, exclude)
    return total, mutable, is_left


def _data_of_guide(
    rng_key: jax.Array,
    run_of: Simulated,
    noise: Mapping[str, SpreadNoise],
    invalid: Invalid,
    axes: Mapping[str, Any],
    exclude: bool,
) -> dict[str, jax.Array]:
    """The simulated data as the guide sees them: with noise, and without what has failed."""
    kernels, values = resolved(noise, run_of.observed), {}
    check_noise_sites(run_of.sites, run_of.observed, kernels)
    keys = random.split(rng_key, len(run_of.data))
    for (site, value), key in zip(run_of.data.items(), keys, strict=True):
        mask = run_of.masks.get(site)
        if mask is not None:  # what is NaN there is no data
            mask = jnp.reshape(mask, jnp.shape(mask) + (1,) * (jnp.ndim(value) - jnp.ndim(mask)))
            value = jnp.where(mask | jnp.isfinite(value), value, jnp.zeros_like(value))
        if exclude:
            held = run_of.observed[site]["infer"].get("obs")
            whole = held is not None and jnp.shape(held) == jnp.shape(value)
            value = invalid.replaced(value, axes[site], held if whole else 0.0)
        kernel = kernels.get(site)
        if kernel is not None:
            kernel = kernel._at_events(run_of.observed[site]["fn"].event_dim)
        noisy = value if kernel is None else draw_at(key, site, kernel, value)
        values[site] = lax.stop_gradient(noisy)
    return values


def _lacking(scored: Mapping[str, Any], run_of: Simulated) -> dict[str, Any]:
    """Latents of the guide that the model has and the run has not."""
    return {
        name: site
        for name, site in scored.items()
        if is_latent(site)
        and is_latent(run_of.sites.get(name, {"type": None}))
        and name not in run_of.latents
    }


def _of_data(elements: jax.Array, dim: int | None) -> jax.Array:
    """Which data have any of the elements; all of them if no dim counts the data."""
    if dim is None:
        return elements.any()
    return jnp.moveaxis(elements, dim, 0).reshape(elements.shape[dim], -1).any(-1)
