# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The loss of neural posterior estimation: minus the guide's log density at simulated latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution

from pyro_spread import _parents
from pyro_spread.infer._datum import data_dims, is_one, parts_left_out
from pyro_spread.infer._invalid import Invalid
from pyro_spread.infer._noise import draw_at
from pyro_spread.infer._ranks import ranks
from pyro_spread.infer._simulated import (
    Row,
    Rows,
    Simulated,
    failed_simulations,
    masks_of,
    simulate_once,
)
from pyro_spread.infer._sites import combine_masks, is_black_box, is_implicit, is_latent, plain_name
from pyro_spread.infer._two_sides import check_noise_sites, is_compared
from pyro_spread.noise import SpreadNoise
from spread_core.arguments import get_argument, locate_data, replace_arguments
from spread_core.messages import contrasts
from spread_core.paths import Where
from spread_core.patterns import resolved
from spread_core.simulated import given, known_data_sites

# As Pyro calls it.
_PLATE = "num_particles_vectorized"


class Layout(NamedTuple):
    """
    How a run lies in its sites: whether it is one datum, the dims that count the data by site, and
    by how much the scale of a site stands for parts of a datum.
    """

    one: bool
    dims: dict[str, int | None]
    parts: dict[str, float]


@dataclass(frozen=True)
class Particles:
    """
    Runs of a program at once, in an outermost plate.

    :param number: how many there are.
    :param depth: number of batch dims of a single run.
    :param layout: of a single run.
    """

    number: int
    depth: int
    layout: Layout

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """``fn`` in the plate."""
        plated: Callable[..., Any] = pyro.plate(_PLATE, self.number, dim=-self.depth - 1)(fn)
        return plated

    def axes(self, sites: Mapping[str, Any]) -> dict[str, list[int]]:
        """The axes of values along which particles and, if they count by themselves, data lie."""
        axes: dict[str, list[int]] = {}
        for name, dim in self.layout.dims.items():
            event_dim = sites[name]["fn"].event_dim
            axes[name] = [-self.depth - 1 - event_dim]
            axes[name] += [] if dim is None else [dim - event_dim]
        return axes


class Scored(NamedTuple):
    """
    A guide that was scored at a run of the model.

    ``nodes`` are the guide's, ``sites`` those of them that have log densities now, ``invalid`` the
    simulations to be left out, and ``dims`` the dims of log densities along which they lie, by
    site.
    """

    run: Simulated
    nodes: dict[str, Any]
    sites: dict[str, Any]
    invalid: Invalid
    layout: Layout
    dims: dict[str, list[int]]


@dataclass(frozen=True)
class Estimation:
    """
    Posterior estimation at one call of the loss.

    :param model: the model.
    :param guide: the guide, all of whose sites have a density.
    :param noise: makes a dict from observed site to the kernel that simulated data pass through.
    :param data: dict from site to the name of the model argument that carries its data.
    :param told: is told of simulations that are left out; None if they are an error.
    :param args: positional arguments of model and guide.
    :param kwargs: keyword arguments of both.
    :param rows: of a table, instead of which the model is not run.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    noise: Callable[[], Mapping[str, SpreadNoise]]
    data: Mapping[str, Where]
    told: Callable[[Mapping[str, int], int], None] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: Rows | None = None

    def minus_log_q(
        self, row: Row | None = None, particles: Particles | None = None
    ) -> torch.Tensor | None:
        """
        Minus the log density of the guide at the model's latents, given their data.

        :param row: of the table, or several for particles.
        :param particles: to run at once.
        :return: a scalar in nats, the mean over the data, and over particles those that are left;
            None if nothing is left.
        :raises ValueError: if sites and data are inconsistent, or a site has no density.
        """
        scored = self.score(self.simulated(row, particles), particles)
        if scored is None:
            return None
        sites, layout, invalid = scored.sites, scored.layout, scored.invalid
        if invalid.by_site:
            if layout.one and particles is None:
                return None  # data that share a draw are left out together
            for name, site in sites.items():
                _leave_out(site, invalid, scored.dims[name])
        counts = torch.stack(
            [_count(s, layout.dims[n], particles) / layout.parts[n] for n, s in sites.items()]
        ).clamp(min=1.0)
        if (current := ranks()) is not None:
            # One number for all data cancels in the mean over a shard: here it must not count.
            scales = [float(s["scale"]) if _is_number(s["scale"]) else 1.0 for s in sites.values()]
            own = torch.as_tensor(scales).to(counts).reshape(-1, *[1] * (counts.dim() - 1))
            counts = own * current.sum(counts / own) / current.size
        log_q = sum(
            _by_particle(site["log_prob"], particles) / count
            for site, count in zip(sites.values(), counts, strict=True)
        )
        if particles is None or not invalid.by_site:
            return -torch.as_tensor(log_q).mean()
        good = invalid.good(1, [0], [invalid.total]).reshape(particles.number, -1).any(-1)
        return -torch.where(good, log_q, 0.0).sum() / good.sum()

    def simulated(self, row: Row | None = None, particles: Particles | None = None) -> Simulated:
        """A run of the model, a row of the table, or several at once."""
        if self.rows is not None and row is not None:
            return self.rows.run(row, None if particles is None else particles.depth)
        known = known_data_sites(self.guide, self.args, self.kwargs)
        among = (particles,) if particles is not None else ()
        return simulate_once(self.model, known, self.args, self.kwargs, *among)

    def score(self, run: Simulated, particles: Particles | None = None) -> Scored | None:
        """
        Run the guide at a run of the model.

        :param run: the run, or several at once.
        :param particles: those at once.
        :return: None if no simulation is valid.
        """
        axes: dict[str, list[int]] = {}
        if self.rows is not None:  # what failed is not among them
            failed = Invalid({}, {})
        elif particles is None:
            failed, axes = failed_simulations(run)
        else:
            axes = particles.axes(run.sites)
            failed = Invalid(run.data, axes, masks_of(run))
        told = self.told
        invalid = failed if told is not None else Invalid({}, {})
        if told is not None and invalid.by_site:
            told(invalid.counts, invalid.total)
            if invalid.all:
                return None
        guide, args, kwargs = self._guide_at(run, invalid, axes)
        latents = run.latents
        local = axes.keys() & latents.keys()
        latents = latents | {n: invalid.replaced(latents[n], axes[n]) for n in local}
        conditioned = poutine.condition(particles(guide) if particles else guide, data=latents)
        with failed.blamed(may_exclude=True):
            scored = poutine.trace(_replayed(conditioned, run)).get_trace(*args, **kwargs)
        if self.rows is not None:
            self.rows.check(_lacking(scored, run))
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
        layout = _layout(run, sites) if particles is None else particles.layout
        front = [] if particles is None else [-particles.depth - 1]
        dims = {n: front + [d for d in (layout.dims[n],) if d is not None] for n in sites}
        if told is None and failed.by_site:  # a guide may have masked them
            for name, site in sites.items():
                seen = _of_data(_weights(site) > 0, dims[name], failed.total)
                failed.among(seen).refuse(may_exclude=True)
        return Scored(run, dict(scored.nodes), sites, invalid, layout, dims)

    def _guide_at(
        self, run: Simulated, invalid: Invalid, axes: Mapping[str, Sequence[int]]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """The guide, and the arguments with which it sees the data of a run."""
        noise, values = resolved(self.noise(), run.observed), {}
        check_noise_sites(run.sites, run.observed, noise)
        for site, value in run.data.items():
            mask = run.masks.get(site)
            if mask is not None:  # what is NaN there is no data
                mask = mask.reshape(*mask.shape, *[1] * (value.dim() - mask.dim()))
                value = torch.where(mask | torch.isfinite(value), value, torch.zeros_like(value))
            if site in axes:
                value = invalid.replaced(value, axes[site])
            if site in noise:
                kernel = noise[site]._at_events(run.observed[site]["fn"].event_dim)
                value = draw_at(site, kernel, value)
            values[site] = value
        known = known_data_sites(self.guide, self.args, self.kwargs)
        if known is not None:
            return given(self.guide, values, run.masks), self.args, self.kwargs
        found = locate_data(self.model, run.observed, self.args, self.kwargs, self.data)
        for site, key in found.items():
            held, own = get_argument(key, self.args, self.kwargs), run.data[site].shape
            # Those of particles have more dims, of which their guide makes what it can.
            own = own[max(0, len(own) - np.ndim(held)) :] if held is not None else own
            if held is not None and np.shape(held) != own:
                raise ValueError(contrasts.joint_simulated_shape(site, own, np.shape(held)))
        at = {key: values[site] for site, key in found.items()}
        return self.guide, *replace_arguments(at, self.args, self.kwargs)


def _replayed(guide: Callable[..., Any], run: Simulated) -> Callable[..., Any]:
    """The guide with the subsamples of the run."""
    if not run.indices:
        return guide
    kept = poutine.Trace()
    for name, value in run.indices.items():
        kept.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
    replayed: Callable[..., Any] = poutine.replay(guide, trace=kept)
    return replayed


def _lacking(scored: Any, run: Simulated) -> dict[str, Any]:
    """Latents of the guide that the model has and the run has not."""
    return {
        name: site
        for name, site in scored.nodes.items()
        if is_latent(site)
        and name not in run.latents
        and name in run.sites
        and is_latent(run.sites[name])
        and not is_compared(run.sites[name])
    }


def _layout(run: Simulated, sites: Mapping[str, Any]) -> Layout:
    drawn_with = {**run.observed, **{name: run.sites[name] for name in sites}}
    one = is_one(drawn_with)
    dims = dict.fromkeys(drawn_with) if one else data_dims(drawn_with)
    parts = {name: parts_left_out(site, one) for name, site in sites.items()}
    return Layout(one, dims, parts)


def _is_number(scale: Any) -> bool:
    return not isinstance(scale, torch.Tensor) or scale.dim() == 0


def _leave_out(site: Any, invalid: Invalid, dims: Sequence[int]) -> None:
    """Take the invalid data out of a scored site: of its log density, and of what it counts."""
    log_prob = site["log_prob"]
    good = invalid.good(log_prob.dim(), dims, [log_prob.shape[d] for d in dims])
    site["log_prob"] = torch.where(torch.as_tensor(good), log_prob, torch.zeros_like(log_prob))
    site["mask"] = combine_masks(site["mask"], good)


def _of_data(elements: torch.Tensor, dims: Sequence[int], number: int) -> torch.Tensor:
    """Which data have any of the elements; all of them if no dim counts the data."""
    if not dims:
        return elements.any().expand(number)
    first = elements.movedim(tuple(dims), tuple(range(len(dims))))
    return first.reshape(number, -1).any(-1)


def _weights(site: Mapping[str, Any]) -> torch.Tensor:
    """How much each element of a scored site counts, with scale and mask."""
    mask, fn = site["mask"], site["fn"]
    while isinstance(fn, MaskedDistribution):
        mask, fn = combine_masks(mask, _parents.mask_of(fn)), fn.base_dist
    weights = torch.ones_like(site["log_prob"]) * site["scale"]
    return weights if mask is None else weights * mask


def _by_particle(elements: torch.Tensor, particles: Particles | None) -> torch.Tensor:
    """The sum over all, or one for every particle."""
    if particles is None:
        return elements.sum()
    return elements.reshape(particles.number, -1).sum(-1)


def _count(site: Mapping[str, Any], dim: int | None, particles: Particles | None) -> torch.Tensor:
    """How many data the log density of a site stands for, with scale and mask, by particle."""
    weights = _weights(site)
    first = -weights.dim() + (0 if particles is None else 1)
    rest = [d for d in range(first, 0) if d != dim]
    return _by_particle(weights.amax(rest) if rest else weights, particles)
