# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""By how many nats the critic of a contrast lags behind the guide."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_spread.infer._guide_run import stop_gradient_tree
from numpyro_spread.infer._implicit_group import ImplicitGroup
from spread_core.logits import Logits
from spread_core.math.own_density import own_log_density
from spread_core.moments import LEAST_DRAWS

# Folded into keys, so that the other draws stay as they are.
_SPARE = 0x5EED0003


def evidence_gap(group: ImplicitGroup, logits: Logits, looks: jax.Array) -> jax.Array | None:
    """
    By how much the estimate of log q falls short of what the guide's own draws say, in nats.

    Summed over the data, at the draws from which the critic learned: on average at most what the
    reported ELBO is too high by, and just that for a Gaussian guide.

    :param group: the sites of the critic.
    :param logits: as its ``critic_loss`` returned them.
    :param looks: whether to look; else it is NaN.
    :return: it and the number of data; None if the contrast has no density, there are few draws for
        moments, or steps of a series are masked.
    """
    run, names = group._run, group._names
    densities = {name: group._contrasts.get(name) or _prior(group, name) for name in names}
    few = _num_draws(group) < LEAST_DRAWS
    masked = any(group._kept_steps(name) is not None for name in names)
    if few or masked or None in densities.values():
        return None

    def look() -> jax.Array:
        gap = -logits.p
        for name, density in densities.items():
            value = lax.stop_gradient(group._fresh.get(name, group._values[name]))
            draws, event_dim = _spare_draws(group, name), run.implicit[name][0].event_dim
            own = own_log_density(_in_full(draws), _in_full(value), event_dim)
            gap = gap + own - density.log_prob(value)
        gap = lax.stop_gradient(gap.mean(0) if group._fresh else gap)
        counts = _counts(group)
        gap = jnp.where(counts > 0, gap * counts, 0.0).sum()
        return jnp.asarray(jnp.stack([gap, counts.sum()]), float)

    return lax.cond(looks, look, lambda: jnp.full(2, math.nan))


def num_data(group: ImplicitGroup) -> jax.Array:
    """The number of data of a critic: of subsampled plates all, of masked ones none."""
    return _counts(group).sum()


def _counts(group: ImplicitGroup) -> jax.Array:
    """How many data each element of the batch stands for."""
    counts = jnp.ones(group._batch_shape) if group._weights is None else group._weights
    scale = group._run.trace[group._names[0]]["scale"]
    # Else it is in the weights.
    return counts * scale if scale is not None and jnp.ndim(scale) == 0 else counts


def _spare_draws(group: ImplicitGroup, name: str) -> jax.Array:
    """Draws of a site that the critic's do not depend on."""
    if name in group._moment_draws:
        return group._moment_draws[name]
    run, count = group._run, _num_draws(group)
    key = random.fold_in(random.fold_in(group._draw_key, _SPARE), group._names.index(name))
    draws = jax.vmap(run.implicit[name][0].sample)(random.split(key, count))
    return group._counted(name, lax.stop_gradient(draws))


def _num_draws(group: ImplicitGroup) -> int:
    """Draws per datum that say what the guide is like."""
    options, num_data = group._run.options, group._num_at_once()
    if group._moment_draws:
        return options.count_moment_draws(num_data)
    return options.count_spare_draws(num_data, sum(v.size for v in group._values.values()))


def _prior(group: ImplicitGroup, name: str) -> Any:
    """The prior that is the contrast of a site, if it has a density."""
    return stop_gradient_tree(group._run.prior(name, group._contrast_key))


def _in_full(x: jax.Array) -> jax.Array:
    """Matrices are decomposed in single precision at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
