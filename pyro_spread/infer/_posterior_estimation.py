# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The loss of neural posterior estimation: minus the guide's log density at simulated latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution

from pyro_spread import _parents
from pyro_spread.infer._datum import are_whole, data_dims, parts_left_out
from pyro_spread.infer._invalid import Invalid
from pyro_spread.infer._joint_sides import failed_simulations
from pyro_spread.infer._noise import draw_at
from pyro_spread.infer._own_draws import refuse_own_draws
from pyro_spread.infer._ranks import ranks
from pyro_spread.infer._sites import combine_masks, is_black_box, is_implicit, is_latent, plain_name
from pyro_spread.infer._two_sides import is_compared
from pyro_spread.noise import SpreadNoise
from spread_core.arguments import get_argument, locate_data, replace_arguments
from spread_core.messages import contrasts, players
from spread_core.nonfinite import Told
from spread_core.paths import Where
from spread_core.patterns import resolved


def minus_log_q(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    noise: Mapping[str, SpreadNoise],
    data: Mapping[str, Where],
    told: Told | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> torch.Tensor | None:
    """
    Minus the log density of the guide at the model's latents, given their data.

    :param model: the model.
    :param guide: the guide, all of whose sites have a density.
    :param noise: dict from observed site to the kernel that simulated data pass through.
    :param data: dict from site to the name of the model argument that carries its data.
    :param told: is told of simulations that are left out; None if they are an error.
    :param args: positional arguments of model and guide.
    :param kwargs: keyword arguments of both.
    :return: a scalar in nats, the mean over the data; None if nothing is left of the run.
    :raises ValueError: if sites and data are inconsistent, or a site has no density.
    """
    with torch.no_grad():
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    observed = {n: s for n, s in trace.nodes.items() if is_compared(s)}
    if not observed:
        raise ValueError(players.nothing_observed())
    refuse_own_draws(model, observed, args, kwargs)
    noise, values = resolved(noise, observed), {}
    failed, axes = failed_simulations(trace.nodes, observed)
    invalid = failed if told is not None else Invalid({}, {})
    if told is not None and invalid.by_site:
        told(invalid.counts, invalid.total)
        if invalid.all:
            return None
    for site, key in locate_data(model, observed, args, kwargs, data).items():
        value, given = observed[site]["value"], get_argument(key, args, kwargs)
        if given is not None and np.shape(given) != value.shape:
            message = contrasts.joint_simulated_shape(site, value.shape, np.shape(given))
            raise ValueError(message)
        value = invalid.replaced(value, axes[site])
        values[key] = draw_at(site, noise[site], value) if site in noise else value
    args, kwargs = replace_arguments(values, args, kwargs)
    latents = {n: s["value"] for n, s in trace.nodes.items() if is_latent(s)}
    latents |= {n: invalid.replaced(latents[n], axes[n]) for n in axes.keys() & latents.keys()}
    with failed.blamed(may_exclude=True):
        scored_guide = poutine.condition(guide, data=latents)
        scored = poutine.trace(scored_guide).get_trace(*args, **kwargs)
    sites = {n: s for n, s in scored.nodes.items() if n in latents and s["type"] == "sample"}
    if not sites:
        drawn = [n for n, s in scored.nodes.items() if is_latent(s)]
        raise ValueError(contrasts.joint_no_latent(drawn))
    for name, site in sites.items():
        # At the model's latents a Delta is worth minus infinity.
        without = is_implicit(site["fn"]) or is_black_box(site["fn"])
        if without or plain_name(site["fn"]) == "Delta":
            raise ValueError(contrasts.joint_needs_density(name))
    with failed.blamed(may_exclude=True):
        scored.compute_log_prob(lambda name, site: name in sites)
    drawn_with = observed | {name: trace.nodes[name] for name in sites}
    one = not are_whole(drawn_with)
    dims = dict.fromkeys(drawn_with) if one else data_dims(drawn_with)
    if invalid.by_site:
        if one:
            return None  # data that share a draw are left out together
        for name, site in sites.items():
            _leave_out(site, invalid, dims[name])
    elif failed.by_site:  # a guide may have masked them
        for name, site in sites.items():
            seen = _weights(site) > 0
            failed.among(_of_data(seen, dims[name], failed.total)).refuse(may_exclude=True)
    counts = [max(1.0, _count(site, dims[name])) for name, site in sites.items()]
    if (current := ranks()) is not None:
        # One number for all data cancels in the mean over a shard: here it must not count.
        scales = [float(s["scale"]) if _is_number(s["scale"]) else 1.0 for s in sites.values()]
        own = torch.tensor([counts, scales], device=next(iter(values.values())).device)
        kept = own[0] / own[1]
        counts = (own[1] * current.sum(kept) / current.size).tolist()
    return -sum(s["log_prob_sum"] / n for s, n in zip(sites.values(), counts, strict=True))


def _is_number(scale: Any) -> bool:
    return not isinstance(scale, torch.Tensor) or scale.dim() == 0


def _leave_out(site: Any, invalid: Invalid, dim: int | None) -> None:
    """Take the invalid data out of a scored site: of its log density, and of what it counts."""
    log_prob = site["log_prob"]
    dims = [] if dim is None else [dim]
    good = invalid.good(log_prob.dim(), dims, [log_prob.shape[d] for d in dims])
    site["log_prob"] = torch.where(torch.as_tensor(good), log_prob, torch.zeros_like(log_prob))
    site["log_prob_sum"] = site["log_prob"].sum()
    site["mask"] = combine_masks(site["mask"], good)


def _of_data(elements: torch.Tensor, dim: int | None, number: int) -> torch.Tensor:
    """Which data have any of the elements; all of them if no dim counts the data."""
    if dim is None:
        return elements.any().expand(number)
    return elements.movedim(dim, 0).reshape(elements.shape[dim], -1).any(-1).expand(number)


def _weights(site: Mapping[str, Any]) -> torch.Tensor:
    """How much each element of a scored site counts, with scale and mask."""
    mask, fn = site["mask"], site["fn"]
    while isinstance(fn, MaskedDistribution):
        mask, fn = combine_masks(mask, _parents.mask_of(fn)), fn.base_dist
    weights = torch.ones_like(site["log_prob"]) * site["scale"]
    return weights if mask is None else weights * mask


def _count(site: Mapping[str, Any], dim: int | None) -> float:
    """How many data the log density of a site stands for, with scale and mask."""
    weights = _weights(site)
    rest = [d for d in range(-weights.dim(), 0) if d != dim]
    whole = float((weights.amax(rest) if rest else weights).sum())
    return whole / parts_left_out(site)
