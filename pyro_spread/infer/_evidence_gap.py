# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""By how many nats the critic of a contrast lags behind the guide."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.util import get_rng_state, set_rng_state

from pyro_spread.infer._guide_run import ImplicitSite
from pyro_spread.infer._implicit_group import ImplicitGroup, counted
from pyro_spread.infer._sites import is_black_box, is_implicit
from spread_core.logits import Logits
from spread_core.math.own_density import own_log_density
from spread_core.moments import LEAST_DRAWS


@torch.no_grad()
def evidence_gap(group: ImplicitGroup, logits: Logits, looks: bool) -> torch.Tensor | None:
    """
    By how much the estimate of log q falls short of what the guide's own draws say, in nats.

    Summed over the data, at the draws from which the critic learned: on average at most what the
    reported ELBO is too high by, and just that for a Gaussian guide.

    :param group: the sites of the critic.
    :param logits: as its ``critic_loss`` returned them.
    :param looks: whether to look; else it is NaN.
    :return: it and the number of data; None if the contrast has no density, or there are few draws
        for moments.
    """
    if _num_draws(group) < LEAST_DRAWS:
        return None
    sites = group._sites
    densities: list[Any] = [group._contrasts.get(name) or _prior(group, name) for name in sites]
    if None in densities:
        return None
    if not looks:
        return logits.p.detach().new_full((2,), math.nan)
    gap = -logits.p.detach()
    for density, (name, site) in zip(densities, sites.items(), strict=True):
        draws, value = _spare_draws(group, site), group._drawn[name]
        drawn, seen = (_in_full(counted(site, each)) for each in (draws, value))
        own = own_log_density(drawn, seen, site.fn.event_dim)
        gap = gap + own - density.log_prob(value)
    gap = gap.mean(0) if group._lead else gap
    counts = _counts(group)
    gap = torch.where(counts > 0, gap * counts, 0.0).sum()
    return torch.stack([gap, counts.sum()]).detach()


def num_data(group: ImplicitGroup) -> torch.Tensor:
    """The number of data of a critic: of subsampled plates all, of masked ones none."""
    return _counts(group).sum()


def _counts(group: ImplicitGroup) -> torch.Tensor:
    """How many data each element of the batch stands for."""
    first = group._first
    counts = first.value.new_ones(first.batch_shape) if first.weights is None else first.weights
    if not isinstance(first.scale, torch.Tensor) or not first.scale.dim():
        counts = counts * first.scale  # else it is in the weights
    return counts / group._run.options.num_at_once


def _spare_draws(group: ImplicitGroup, site: ImplicitSite) -> torch.Tensor:
    """Draws of a site that the critic's do not depend on."""
    if site.name in group._moment_draws:
        return group._moment_draws[site.name]
    device, state = site.value.device, get_rng_state()
    try:  # also NumPy's and Python's
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return site.draw(_num_draws(group))
    finally:
        set_rng_state(state)


def _num_draws(group: ImplicitGroup) -> int:
    """Draws per datum that say what the guide is like."""
    options = group._run.options
    if group._moment_draws:
        return options.count_moment_draws(group._num_data)
    return options.count_spare_draws(group._num_data, group._num_numbers)


def _prior(group: ImplicitGroup, name: str) -> TorchDistribution | None:
    """The prior that is the contrast of a site, if it has a density."""
    prior = group._run.priors.get(name)
    if prior is None or is_implicit(prior) or is_black_box(prior):
        return None
    return prior.expand(group._sites[name].batch_shape)


def _in_full(x: torch.Tensor) -> torch.Tensor:
    """Matrices are decomposed in single precision at least."""
    return x if x.dtype == torch.float64 else x.float()
