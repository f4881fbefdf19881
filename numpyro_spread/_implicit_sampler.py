# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Implicit distributions with params: a Gaussian plus the output of an MLP."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import random
from jax.tree_util import Partial
from numpyro.distributions import constraints

from numpyro_spread.distributions import ImplicitDistribution
from spread_core.latents import EMBEDDING_DIM, QUANTILES, LatentGroup


def _push(
    net: Any, loc: jax.Array, scale: jax.Array, context: jax.Array | None, noise: jax.Array
) -> jax.Array:
    """Map noise to draws: a Gaussian, plus the output of the net in units of its scale."""
    return loc + scale * (noise[..., : loc.shape[-1]] + _apply_net(net, noise, context))


def _implicit(
    net: Any, loc: jax.Array, scale: jax.Array, context: jax.Array | None
) -> ImplicitDistribution:
    noise_size = net["layers"][0]["kernel"].shape[0] // 2
    base = dist.Normal(jnp.zeros(noise_size, loc.dtype), 1.0).to_event(1)
    fn = Partial(_push, net, loc, scale, context)
    return ImplicitDistribution(fn, base.expand(loc.shape[:-1]), loc.shape[-1:])


def init_net(
    rng_key: jax.Array,
    noise_size: int,
    context_size: int,
    hidden: Sequence[int],
    size: int,
    dtype: Any,
) -> dict[str, Any]:
    """
    Params of an MLP of the noise, its signs and what is known of the datum; it is zero at first.

    :param rng_key: random key.
    :param noise_size: dimensions of the noise.
    :param context_size: dimensions of what is known of the datum, or 0.
    :param hidden: sizes of the hidden layers.
    :param size: dimensions of the output.
    :param dtype: dtype of the params.
    """
    sizes = [2 * noise_size, *hidden, size]
    keys = random.split(rng_key, len(sizes))
    layers = []
    for key, (inputs, outputs) in zip(keys[1:], itertools.pairwise(sizes), strict=True):
        kernel_key, bias_key = random.split(key)
        bound = 1 / math.sqrt(inputs)
        kernel = random.uniform(kernel_key, (inputs, outputs), dtype, -bound, bound)
        layers.append(
            {"kernel": kernel, "bias": random.uniform(bias_key, (outputs,), dtype, -bound, bound)}
        )
    net: dict[str, Any] = {"layers": layers}
    if context_size:
        # A layer of its own: it runs once per datum, however many draws there are of each.
        bound = 1 / math.sqrt(context_size)
        net["context"] = random.uniform(keys[0], (context_size, sizes[1]), dtype, -bound, bound)
    if hidden:
        layers[-1] = jax.tree.map(jnp.zeros_like, layers[-1])
        return net
    return jax.tree.map(jnp.zeros_like, net)


def _apply_net(net: Any, noise: jax.Array, context: jax.Array | None) -> jax.Array:
    first, *rest = net["layers"]
    # A continuous map would leave draws between two modes.
    noise = jnp.concatenate([noise, jnp.sign(noise)], -1)
    x = noise @ first["kernel"] + first["bias"]
    if context is not None:
        x = x + context @ net["context"]
    for layer in rest:
        x = jax.nn.silu(x) @ layer["kernel"] + layer["bias"]
    return x


class FreeSampler:
    """
    Location, scale and embedding of every datum, as params.

    :param name: begins the names of the params. Those of the net are declared here, outside plates;
        those of the data by :meth:`distribution`, inside.
    :param group: the latents.
    :param noise_size: dimensions of the noise.
    :param hidden: sizes of the hidden layers.
    :param start: first location and scale as a function of a random key.
    :param features: for :class:`AmortisedSampler`.
    """

    def __init__(
        self,
        name: str,
        group: LatentGroup,
        noise_size: int,
        hidden: Sequence[int],
        start: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
        features: jax.Array | None,
    ) -> None:
        self._name, self._start, self._local = name, start, bool(group.plates)
        context_size = EMBEDDING_DIM if self._local else 0
        if features is not None:
            context_size = features.shape[-1]

        def init(rng_key: jax.Array) -> Any:
            start_key, net_key = random.split(rng_key)
            dtype = start(start_key)[0].dtype
            return init_net(net_key, noise_size, context_size, hidden, group.size, dtype)

        self._net = numpyro.param(f"{name}_net", init)

    def distribution(self, features: jax.Array | None) -> ImplicitDistribution:
        """The implicit distribution of the data in the plates around the call."""
        name, start, context = self._name, self._start, None
        loc = numpyro.param(f"{name}_loc", lambda key: start(key)[0], event_dim=1)
        scale = numpyro.param(
            f"{name}_scale",
            lambda key: start(key)[1],
            constraint=constraints.softplus_positive,
            event_dim=1,
        )
        if self._local:

            def zeros(rng_key: jax.Array) -> jax.Array:
                like = start(rng_key)[0]
                return jnp.zeros((*like.shape[:-1], EMBEDDING_DIM), like.dtype)

            context = numpyro.param(f"{name}_embedding", zeros, event_dim=1)
        return _implicit(self._net, loc, scale, context)


class AmortisedSampler(FreeSampler):
    """Location and scale of every datum, linear in its features."""

    def __init__(
        self,
        name: str,
        group: LatentGroup,
        noise_size: int,
        hidden: Sequence[int],
        start: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
        features: jax.Array,
    ) -> None:
        super().__init__(name, group, noise_size, hidden, start, features)

        def init(rng_key: jax.Array) -> Any:
            loc, scale = start(rng_key)
            kernel = jnp.zeros((features.shape[-1], group.size), loc.dtype)
            unconstrained_scale = scale + jnp.log(-jnp.expm1(-scale))
            return {
                "loc": {"kernel": kernel, "bias": loc},
                "scale": {"kernel": kernel, "bias": unconstrained_scale},
            }

        self._heads = numpyro.param(f"{name}_heads", init)

    def distribution(self, features: jax.Array | None) -> ImplicitDistribution:
        """The implicit distribution of the data with these features."""
        assert features is not None
        heads = self._heads
        loc, scale = (
            features @ heads[part]["kernel"] + heads[part]["bias"] for part in ("loc", "scale")
        )
        return _implicit(self._net, loc, jax.nn.softplus(scale), features)


def location_and_scale(
    draws: jax.Array, group: LatentGroup, amortised: bool
) -> tuple[jax.Array, jax.Array]:
    """
    Where the guide starts: of shape batch of all data + (size,), or (size,) where amortised.

    :param draws: draws of shape (draws,) + batch + (size,).
    """
    axes = group.pooled_axes(amortised)
    low, loc, high = jnp.quantile(draws, jnp.asarray(QUANTILES), axis=axes, keepdims=True)[:, 0]
    scale = (high - low) / 2
    # Of a prior that puts mass at the ends of its support, or has no width.
    loc = jnp.where(jnp.isfinite(loc), loc, 0.0).astype(draws.dtype)
    scale = jnp.where(jnp.isfinite(scale) & (scale > 0), scale, 1.0).astype(draws.dtype)
    if amortised:
        return loc.reshape(-1), scale.reshape(-1)
    batch = group.batch_shape({plate.name: plate.full_size for plate in group.plates})
    shape = (*batch, group.size)
    return jnp.broadcast_to(loc, shape), jnp.broadcast_to(scale, shape)
