# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Latent sites to unconstrained vectors and back; features for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import distributions as dist
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.infer.util import helpful_support_errors

from numpyro_spread.ratio.binding import Bound, bind
from spread_core.latents import Latent, LatentGroup, Plate
from spread_core.messages import autoguide


def latent_of(name: str, site: Any, full_sizes: Mapping[str, int]) -> Latent:
    """Names, shapes and plates of a sample site."""
    with helpful_support_errors(site):
        transform = biject_to(site["fn"].support)
    plates = frozenset(
        Plate(frame.name, frame.dim, frame.size, full_sizes[frame.name])
        for frame in site["cond_indep_stack"]
    )
    batch_dims = jnp.ndim(site["value"]) - site["fn"].event_dim
    shape = jnp.shape(transform.inv(site["value"]))
    return Latent(name, shape[:batch_dims], shape[batch_dims:], plates)


def unconstrain(
    group: LatentGroup, supports: Mapping[str, Any], values: Mapping[str, jax.Array]
) -> jax.Array:
    """Values of the group's latents as vectors of shape batch + (size,) in unconstrained space."""
    parts = group.join({name: biject_to(supports[name]).inv(values[name]) for name in group.names})
    batch = jnp.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return jnp.concatenate([jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in parts], -1)


def constrain(support: Any, event_dim: int, unconstrained: jax.Array, scored: bool) -> dist.Delta:
    """The latent as a function of its unconstrained value, with the density of that change."""
    transform = biject_to(support)
    value = transform(unconstrained)
    log_density: Any = 0.0
    if scored:
        log_density = -transform.log_abs_det_jacobian(unconstrained, value)
        surplus = jnp.ndim(log_density) - jnp.ndim(value) + event_dim
        log_density = sum_rightmost(log_density, surplus)
    return dist.Delta(value, log_density=log_density, event_dim=event_dim)


def select_features(
    group: LatentGroup,
    features: jax.Array | None,
    plates: Mapping[str, Any],
    indices: Mapping[str, jax.Array],
) -> jax.Array | None:
    """The features of the data in the subsample."""
    if features is None:
        return None
    sizes = {p.name: (plates[p.name].subsample_size, plates[p.name].size) for p in group.plates}
    if not group.features_fit(features.shape, sizes):
        refuse_features(group, features, {name: size for name, (size, _) in sizes.items()}, {})
    for plate in group.plates:
        if features.shape[plate.dim - 1] != plates[plate.name].subsample_size:
            features = jnp.take(features, indices[plate.name], plate.dim - 1)
    return features


def refuse_features(
    group: LatentGroup, features: jax.Array, sizes: Mapping[str, int], output: Any
) -> None:
    """
    :raises ValueError: always, with the shape of the features and that of the plates.
    """
    batch, dict_form = group.batch_shape(sizes), isinstance(output, Mapping)
    message = autoguide.encoder_features_shape(group.key, features.shape, batch, dict_form)
    raise ValueError(message)


def bind_encoder(encoder: Any) -> Bound | None:
    """A module as a pure function; None for a plain function, or where there is none."""
    if encoder is None:
        return None
    try:
        return bind(encoder)
    except TypeError:
        if callable(encoder):
            return None
        wanted = "a module of flax linen, flax nnx or equinox, or a function"
        raise TypeError(autoguide.no_encoder(encoder, wanted)) from None
