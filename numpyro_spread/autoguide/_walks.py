# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Draws and densities of all latents of an amortised guide together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro.distributions import biject_to

from numpyro_spread.autoguide._conditional import unconstrained
from spread_core.amortized.density import Conditional
from spread_core.amortized.layout import Group, Variable


def draws(
    guide: Any,
    lead: tuple[int, ...],
    sizes: tuple[tuple[str, int], ...],
    rng_key: jax.Array,
    params: Any,
    values: Any,
    masks: Any,
    values_lead: int = 0,
) -> dict[str, jax.Array]:
    """
    Draws of all latents, of shape lead + site's.

    :param guide: the guide.
    :param lead: dims of samples.
    :param sizes: of plates by name.
    :param rng_key: random key.
    :param params: of the guide.
    :param values: data by site.
    :param masks: what counts of them, by group.
    :param values_lead: number of leading dims of the data.
    """
    found: dict[str, jax.Array] = {}
    keys = iter(random.split(rng_key, len(guide.supports)))

    def visit(group: Group, variable: Variable, conditional: Conditional) -> jax.Array:
        site = guide.site(group, variable, conditional, dict(sizes), lead)
        value = found[variable.name] = site.sample(next(keys))
        raw = unconstrained(variable, guide.supports[variable.name], value)
        return variable.join(raw, guide.context.depth, len(lead))

    guide.walk(params, values, masks, values_lead, visit)
    return {name: found[name] for name in guide.supports}


def log_prob(
    guide: Any,
    sizes: tuple[tuple[str, int], ...],
    latents: dict[str, jax.Array],
    params: Any,
    values: Any,
    masks: Any,
    values_lead: int = 0,
) -> jax.Array:
    """
    Log density of all latents together, of shape lead.

    :param guide: the guide.
    :param sizes: of plates by name.
    :param latents: by site, of shape lead + site's.
    :param params: of the guide.
    :param values: data by site.
    :param masks: what counts of them, by group.
    :param values_lead: number of leading dims of the data.
    """
    found: list[jax.Array] = []

    def visit(group: Group, variable: Variable, conditional: Conditional) -> jax.Array:
        value = latents[variable.name]
        site = guide.site(group, variable, conditional, dict(sizes), ())
        lead = value.ndim - len(site.event_shape) - len(variable.batch_shape)
        each = site.log_prob(value)
        found.append(each.reshape(*each.shape[:lead], -1).sum(-1))
        raw = unconstrained(variable, guide.supports[variable.name], value)
        return variable.join(raw, guide.context.depth, lead)

    guide.walk(params, values, masks, values_lead, visit)
    return sum(found[1:], found[0])


def quantiles_of(drawn: jax.Array, quantiles: Any, support: Any) -> jax.Array:
    """
    Quantiles of a site, taken in unconstrained space.

    :param drawn: draws, in front.
    :param quantiles: probabilities.
    :param support: of the site.
    """
    levels = jnp.asarray(quantiles)
    if support.is_discrete:
        return jnp.quantile(drawn, levels, axis=0, method="nearest").astype(drawn.dtype)
    transform = biject_to(support)
    return transform(jnp.quantile(transform.inv(drawn), levels, axis=0))


class HasQuantiles:
    """A guide whose quantiles are those of draws."""

    num_quantile_draws: int
    supports: Mapping[str, Any]
    sample_posterior: Callable[..., Any]

    def median(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
        """
        Medians of all latents, estimated from :attr:`num_quantile_draws` draws of a fixed key.

        :param params: params of the guide.
        :param args: arguments of the model, with the data in their place.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to median.
        """
        found = self.quantiles(params, [0.5], *args, **kwargs)
        return {name: value[0] for name, value in found.items()}

    def quantiles(
        self, params: Mapping[str, Any], quantiles: Any, *args: Any, **kwargs: Any
    ) -> dict[str, jax.Array]:
        """
        Quantiles of all latents, taken in unconstrained space as other autoguides do, estimated
        from :attr:`num_quantile_draws` draws of a fixed key.

        :param params: params of the guide.
        :param quantiles: probabilities.
        :param args: arguments of the model, with the data in their place.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to quantiles, the probabilities in front.
        """
        shape = (self.num_quantile_draws,)
        found = self.sample_posterior(random.key(0), params, *args, sample_shape=shape, **kwargs)
        return {n: quantiles_of(x, quantiles, self.supports[n]) for n, x in found.items()}
