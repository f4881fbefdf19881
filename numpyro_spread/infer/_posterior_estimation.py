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

from numpyro_spread.infer._datum import are_whole, data_dims, parts_left_out
from numpyro_spread.infer._guide_run import stop_gradient_tree
from numpyro_spread.infer._invalid import note
from numpyro_spread.infer._joint_sides import failed_simulations, is_latent, run, run_forward
from numpyro_spread.infer._noise import draw_at
from numpyro_spread.infer._own_draws import refuse_own_draws
from numpyro_spread.infer._sites import is_black_box, is_implicit, mask_of_batch, plain_name
from numpyro_spread.infer._two_sides import is_compared
from numpyro_spread.noise import SpreadNoise
from spread_core.arguments import get_argument, locate_data, replace_arguments
from spread_core.messages import contrasts, players
from spread_core.paths import Where
from spread_core.patterns import resolved


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
    :return: a scalar in nats, the mean over the data; new mutable state; and whether anything is
        left of the run.
    :raises ValueError: if sites and data are inconsistent, or a site has no density.
    """
    model_key, noise_key, guide_key = random.split(rng_key, 3)
    simulated = run_forward(model, model_key, stop_gradient_tree(params), {}, args, kwargs)
    observed = {name: site for name, site in simulated.items() if is_compared(site)}
    if not observed:
        raise ValueError(players.nothing_observed())
    refuse_own_draws(stop_gradient_tree(params), model, observed, args, kwargs)
    kernels, values = resolved(noise, observed), {}
    invalid, axes = failed_simulations(simulated, observed)
    located = locate_data(model, observed, args, kwargs, data)
    keys = random.split(noise_key, len(located))
    for (site, key), site_key in zip(located.items(), keys, strict=True):
        value, given = observed[site]["value"], get_argument(key, args, kwargs)
        if jnp.shape(given) != jnp.shape(value):
            message = contrasts.joint_simulated_shape(site, value.shape, jnp.shape(given))
            raise ValueError(message)
        if exclude:
            value = invalid.replaced(value, axes[site], given)
        kernel = kernels.get(site)
        noisy = value if kernel is None else draw_at(site_key, site, kernel, value)
        values[key] = lax.stop_gradient(noisy)
    args, kwargs = replace_arguments(values, args, kwargs)
    latents = {n: lax.stop_gradient(s["value"]) for n, s in simulated.items() if is_latent(s)}
    if exclude:
        local = axes.keys() & latents.keys()
        latents |= {n: invalid.replaced(latents[n], axes[n], latents[n]) for n in local}
    with contextlib.nullcontext() if exclude else invalid.blamed(may_exclude=True):
        scored = run(guide, guide_key, params, latents, args, kwargs)
    sites = {n: s for n, s in scored.items() if n in latents and s["type"] == "sample"}
    if not sites:
        raise ValueError(contrasts.joint_no_latent(scored))
    drawn_with = observed | {name: simulated[name] for name in sites}
    one = not are_whole(drawn_with)
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
        count = weights.max(rest).sum() / parts_left_out(site, scored)
        total = total - (scale * log_prob).sum() / jnp.maximum(1.0, count)
    mutable = {
        name: site["value"]
        for name, site in [*simulated.items(), *scored.items()]
        if site["type"] == "mutable"
    }
    is_left = jnp.array(True)
    if exclude:  # data that share a draw are left out together
        is_left = ~(invalid.rows.any() if one else invalid.none_good)
    else:  # a guide may have masked them
        invalid = invalid.among(seen)
        invalid.refuse(may_exclude=True)
    note(invalid.counts, invalid.total, exclude)
    return total, mutable, is_left


def _of_data(elements: jax.Array, dim: int | None) -> jax.Array:
    """Which data have any of the elements; all of them if no dim counts the data."""
    if dim is None:
        return elements.any()
    return jnp.moveaxis(elements, dim, 0).reshape(elements.shape[dim], -1).any(-1)
