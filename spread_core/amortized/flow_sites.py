# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Sites of an amortised guide that have flows, and which do."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace

from spread_core.amortized.context import side_by_side
from spread_core.amortized.density import Conditional
from spread_core.amortized.flow import Flow, shared_out
from spread_core.amortized.layout import Group, Variable
from spread_core.amortized.mixture import ensemble_mean, same_ndim
from spread_core.math._arrays import Array
from spread_core.messages import amortized as messages

#: Densities that have a name.
NAMED = ("mixture", "nsf", "maf")

# Modules have the one, distributions the other.
_OF_MADE = ("parameters", "log_prob")

#: Makes the density of one site.
Build = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class FlowConditional(Conditional):
    """
    The conditional distribution of one site by a flow, given the data and all latents before it.

    :param flow: the flow.
    """

    flow: Flow

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients."""
        return self.flow.has_rsample

    def log_prob(self, vectors: Array) -> Array:
        """
        Log density in nats per unit of the unconstrained space, shared out to the vector's numbers.

        :param vectors: unconstrained, lead + plates + (size,); what is not finite is outside of
            the support.
        :return: of the same shape.
        """
        xp = array_namespace(vectors)
        good = xp.all(xp.isfinite(vectors), axis=-1)
        safe = xp.where(good[..., None], vectors, 0.0)
        t = self.standardise(safe)
        each = self.flow.log_prob(self.params, *same_ndim(t[None], self._context()))
        found = ensemble_mean(each) + xp.sum(self.log_slope(safe), axis=-1)
        return shared_out(xp.where(good, found, -math.inf), self.variable.size)

    def draw(
        self, uniform: Callable[[tuple[int, ...]], Array], shape: tuple[int, ...], key: Any = None
    ) -> Array:
        """
        Unconstrained vectors, reparametrised if the flow's draws are.

        :param uniform: random numbers between 0 and 1 of a shape.
        :param shape: lead + plates of the draws.
        :param key: the backend's random key, if it has one.
        :return: of shape lead + plates + (size,).
        """
        xp, context = array_namespace(self.inputs), self._context()
        (context,) = same_ndim(context, ndim=len(shape) + 2)
        context = xp.broadcast_to(context, (context.shape[0], *shape, context.shape[-1]))
        t = self.flow.draw(self.params, context, uniform(shape), key)
        return self.unstandardise(t)

    def _context(self) -> Array:
        """Of shape (1 or M,) + lead + plates + (C,)."""
        return side_by_side(same_ndim(self.inputs, self.before[None, ..., : self.start]))


def conditional_class(flow: Flow | None) -> Callable[..., Conditional]:
    """
    What makes a site's conditional.

    :param flow: of the site; None for a mixture, or a discrete site.
    """
    return Conditional if flow is None else functools.partial(FlowConditional, flow=flow)


class HasDensity:
    """What a guide knows of the densities of its sites."""

    hidden: Sequence[int]
    ensemble: int
    density: str | Build

    def _set_density(self, density: Any) -> None:
        """
        Choose the density of continuous sites.

        :param density: a name or a function.
        :raises ValueError: for another name.
        :raises ImportError: if the library behind the name is missing.
        """
        if not isinstance(density, type) and any(hasattr(density, n) for n in _OF_MADE):
            raise ValueError(messages.made_density(density))
        if not callable(density) and density not in NAMED:
            raise ValueError(messages.unknown_density(density))
        self.density = density
        self._build: Build | None = None
        if density != "mixture":
            self._build = self._builder(density) if isinstance(density, str) else density
        self._flows: dict[str, tuple[int, Flow]] = {}

    def _builder(self, density: str) -> Build:
        """What makes flows of a name."""
        raise NotImplementedError

    def _new_flow(self, build: Build, site: str, features: int, context: int) -> Flow:
        """The flow of a site."""
        raise NotImplementedError

    @property
    def truncates(self) -> bool:
        """Whether densities live on intervals as they are, not on the whole line."""
        return self._build is None

    def has_mixtures(self, group: Group) -> bool:
        """
        Whether some of a group's sites have a mixture, or a categorical distribution.

        :param group: the group.
        """
        return self._build is None or any(variable.num_classes for variable in group.variables)

    def flow(self, variable: Variable, context: int) -> Flow | None:
        """
        The flow of a site; None if it has a mixture, or is discrete.

        :param variable: the site.
        :param context: how many numbers it is conditioned on.
        """
        if self._build is None or variable.num_classes:
            return None
        known = self._flows.get(variable.name)
        if known is None or known[0] != context:
            flow = self._new_flow(self._build, variable.name, variable.size, context)
            known = self._flows[variable.name] = (context, flow)
        return known[1]

    def flows(self, group: Group, inputs: int) -> dict[str, Any]:
        """
        Flows of a group's sites, by site.

        :param group: the group.
        :param inputs: how many numbers its nets see.
        """
        found = {}
        for variable, place in zip(group.variables, group.slices.values(), strict=True):
            flow = self.flow(variable, inputs + place.start)
            if flow is not None:
                found[variable.name] = flow
        return found

    def flow_places(self, groups: Sequence[Group]) -> dict[str, dict[str, int]]:
        """
        The first number of the site that a flow's param belongs to, by group and name of the param.

        :param groups: of latents.
        """
        return {
            group.key: {
                name: group.slices[variable.name].start
                for variable in group.variables
                if variable.name in self._flows
                for name in self._flows[variable.name][1].names
            }
            for group in groups
        }
