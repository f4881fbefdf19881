# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Draws and densities of all latents of an amortised guide together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.distributions import biject_to

from pyro_spread.autoguide._conditional import close_gap, open_gap, unconstrained
from spread_core.amortized.density import Conditional
from spread_core.amortized.layout import Group, Variable


def draws(
    guide: Any,
    lead: tuple[int, ...],
    sizes: Mapping[str, int],
    values: Mapping[str, torch.Tensor],
    masks: Mapping[str, torch.Tensor],
    values_lead: int,
) -> dict[str, torch.Tensor]:
    """
    Draws of all latents, of shape lead + site's.

    :param guide: the guide.
    :param lead: dims of samples.
    :param sizes: of plates by name.
    :param values: data by site.
    :param masks: what counts of them, by group.
    :param values_lead: number of leading dims of the data.
    """
    found: dict[str, torch.Tensor] = {}

    def visit(group: Group, variable: Variable, conditional: Conditional) -> torch.Tensor:
        site = guide.site(group, variable, conditional, sizes, lead)
        drawn = site.sample()
        value, _ = close_gap(variable, drawn, site.event_dim, guide.context.depth)
        found[variable.name] = value.reshape((*lead, *value.shape[value.dim() - _ndim(site) :]))
        return vectors(guide, variable, drawn)

    guide.walk(guide.params(), values, masks, values_lead, visit)
    return {name: found[name] for name in guide.supports}


def log_prob(
    guide: Any,
    sizes: Mapping[str, int],
    latents: Mapping[str, torch.Tensor],
    values: Mapping[str, torch.Tensor],
    masks: Mapping[str, torch.Tensor],
    values_lead: int,
) -> torch.Tensor:
    """
    Log density of all latents together, of shape lead.

    :param guide: the guide.
    :param sizes: of plates by name.
    :param latents: by site, of shape lead + site's.
    :param values: data by site.
    :param masks: what counts of them, by group.
    :param values_lead: number of leading dims of the data.
    """
    total: list[torch.Tensor] = []

    def visit(group: Group, variable: Variable, conditional: Conditional) -> torch.Tensor:
        value = latents[variable.name]
        site = guide.site(group, variable, conditional, sizes, ())
        lead = value.dim() - _ndim(site)
        found = site.log_prob(open_gap(variable, value, lead, guide.context.depth))
        total.append(found.reshape((*found.shape[:lead], -1)).sum(-1))
        raw = unconstrained(variable, guide.supports[variable.name], value)
        return variable.join(raw.to(conditional.loc), guide.context.depth, lead)

    guide.walk(guide.params(), values, masks, values_lead, visit)
    return sum(total[1:], total[0])


def shape_of(
    conditional: Conditional,
    group: Group,
    sizes: Mapping[str, int],
    lead: tuple[int, ...],
    depth: int,
) -> tuple[int, ...]:
    """
    Sizes of lead and plates' dims of a site, with the leading dims of all that it sees.

    :param conditional: the site's.
    :param group: its group.
    :param sizes: of plates by name.
    :param lead: dims of samples in front.
    :param depth: number of dims for plates.
    """
    plates = [1] * depth
    for name, dim in group.dims.items():
        plates[dim] = sizes[name]
    seen = conditional.inputs.shape[1:-1], conditional.before.shape[:-1]
    return tuple(torch.broadcast_shapes((*lead, *plates), *seen))


def vectors(guide: Any, variable: Variable, value: torch.Tensor) -> torch.Tensor:
    """
    A value in a trace as vectors.

    :param guide: the guide.
    :param variable: the latent.
    :param value: with dims of size 1 for plates that it is not in, where there are leading ones.
    """
    support, depth = guide.supports[variable.name], guide.context.depth
    event_dim = guide.prototype_trace[variable.name]["fn"].event_dim
    value, lead = close_gap(variable, value, event_dim, depth)
    return variable.join(guide.tensor(unconstrained(variable, support, value)), depth, lead)


def quantiles_of(drawn: torch.Tensor, quantiles: Any, support: Any) -> torch.Tensor:
    """
    Quantiles of a site, taken in unconstrained space.

    :param drawn: draws, in front.
    :param quantiles: probabilities.
    :param support: of the site.
    """
    transform = None if support.is_discrete else biject_to(support)
    raw = drawn if transform is None else transform.inv(drawn)
    method: Any = "nearest" if transform is None else "linear"
    host = np.quantile(raw.cpu().numpy(), np.asarray(quantiles), axis=0, method=method)
    found = drawn.new_tensor(host)
    return found if transform is None else transform(found)


def _ndim(site: Any) -> int:
    return len(site.conditional.variable.batch_shape) + site.event_dim


class HasQuantiles:
    """A guide whose quantiles are those of draws."""

    num_quantile_draws: int
    supports: Mapping[str, Any]
    sample_posterior: Callable[..., Any]

    def median(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """
        Medians of all latents, estimated from :attr:`num_quantile_draws` draws.

        :param args: arguments of the model, with the data in their place.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to median.
        """
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | torch.Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """
        Quantiles of all latents, taken in unconstrained space as other autoguides do, estimated
        from :attr:`num_quantile_draws` draws.

        :param quantiles: probabilities.
        :param args: arguments of the model, with the data in their place.
        :param kwargs: keyword arguments of the model.
        :return: dict from site to quantiles, the probabilities in front.
        """
        shape = (self.num_quantile_draws,)
        found = self.sample_posterior(*args, sample_shape=shape, **kwargs)
        return {n: quantiles_of(x, quantiles, self.supports[n]) for n, x in found.items()}
