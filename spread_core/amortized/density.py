# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Draws and log densities of the sites of a group, number by number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from spread_core.amortized.context import side_by_side
from spread_core.amortized.flow import Flow, shared_out
from spread_core.amortized.layout import Group, Variable
from spread_core.amortized.mixture import (
    draw,
    ensemble_mean,
    log_density,
    log_softmax,
    mixture,
    outputs,
    select,
)
from spread_core.amortized.tails import Tails, log_slope, tame, untame
from spread_core.math._arrays import Array, cast, fold

# Draws at an end are standardised again, where they may be beyond it.
_ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True)
class Conditional:
    """
    The conditional distribution of one site, given the data and all latents before it.

    :param params: of the group's mixtures, see :func:`~spread_core.amortized.mixture.initial`.
    :param loc: location of the group's latents, of shape (D,).
    :param scale: their scale.
    :param ends: standardised ends of their intervals, of shape (2, D).
    :param before: standardised latents of the group before this site, lead + plates + (start,).
    :param inputs: what the nets see, (1 or M,) + lead + plates + (V,).
    :param features: what the regression sees, (1 or M,) + lead + plates + (N,).
    :param variable: the site.
    :param start: where its numbers begin in the group's vector.
    :param components: K.
    :param tails: of the group's latents, see :func:`~spread_core.amortized.tails.fit_tails`.
    """

    params: Mapping[str, Array]
    loc: Array
    scale: Array
    ends: Array
    before: Array
    inputs: Array
    features: Array
    variable: Variable
    start: int
    components: int
    tails: Tails

    @property
    def which(self) -> slice:
        """The site's numbers in the group's vector."""
        return slice(self.start, self.start + self.variable.size)

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients: all but discrete ones do."""
        return not self.variable.num_classes

    def standardise(self, vectors: Array) -> Array:
        """
        Unconstrained vectors on the scale of the conditionals.

        :param vectors: lead + plates + (size,).
        """
        tamed = tame(vectors, self._own_tails)
        return (tamed - self.loc[self.which]) / self.scale[self.which]

    def unstandardise(self, t: Array) -> Array:
        """
        The inverse of :meth:`standardise`.

        :param t: lead + plates + (size,).
        """
        return untame(t * self.scale[self.which] + self.loc[self.which], self._own_tails)

    def log_slope(self, vectors: Array) -> Array:
        """
        Log of the derivative of :meth:`standardise`, of the same shape.

        :param vectors: unconstrained, lead + plates + (size,).
        """
        xp = array_namespace(vectors)
        return log_slope(vectors, self._own_tails) - xp.log(self.scale[self.which])

    @property
    def _own_tails(self) -> Tails:
        return {name: self.tails[name][self.which] for name in ("centre", "spread")}

    def log_prob(self, vectors: Array) -> Array:
        """
        Log density of each number, in nats per unit of the unconstrained space.

        :param vectors: unconstrained, lead + plates + (size,).
        :return: of the same shape.
        """
        xp = array_namespace(vectors)
        t = self._whole(self.standardise(vectors))
        each = _log_probs(
            self.params,
            t[None],
            self.inputs,
            self.features,
            self.ends,
            self.which,
            self.variable.num_classes,
            self.components,
            vectors[None] if self.variable.num_classes else None,
        )
        found = xp.moveaxis(ensemble_mean(each), 0, -1)
        classes = self.variable.num_classes
        if not classes:
            found = found + self.log_slope(vectors)
            if self.variable.low is None:
                own, (least, most) = t[..., self.which], self.ends[:, self.which]
                rounding = _ROUNDING * (most - least)
                inside = (own >= least - rounding) & (own <= most + rounding)
                return xp.where(inside, found, -math.inf)
        low, high = [0.0, classes - 1.0] if classes else cast(self.variable.ends(), vectors)
        return xp.where((vectors >= low) & (vectors <= high), found, -math.inf)

    def draw(
        self, uniform: Callable[[tuple[int, ...]], Array], shape: tuple[int, ...], key: Any = None
    ) -> Array:
        """
        Unconstrained vectors, reparametrised except for discrete sites.

        :param uniform: random numbers between 0 and 1 of a shape.
        :param shape: lead + plates of the draws.
        :param key: for densities that draw by themselves.
        :return: of shape lead + plates + (size,).
        """
        xp = array_namespace(self.inputs)
        own, classes = select(self.params, self.which), self.variable.num_classes
        size, names = self.variable.size, sorted(own)
        given = self.inputs, self.features
        numbers = uniform((2 * size, *shape))

        def step(t: Array, item: Any) -> Array:
            place, choose, low, high, scaled, one, *leaves = item
            params = {name: leaf[:, None] for name, leaf in zip(names, leaves, strict=True)}
            if classes:
                logits = outputs(params, t[None], *given)[2][..., :classes]
                ends = xp.cumulative_sum(xp.exp(ensemble_mean(log_softmax(logits))[0]), axis=-1)
                index = xp.sum(ends[..., :-1] < choose[..., None] * ends[..., -1:], axis=-1)
                new = (cast(index, ends) - scaled[0]) / scaled[1]
            else:
                found = mixture(params, t[None], *given, self.components)
                new = draw(found, choose, place, low, high)
            return t + new[..., None] * one

        eye = cast(np.eye(self.loc.shape[0]), self.loc)[self.which]
        scaled = xp.stack([self.loc, self.scale], axis=-1)[self.which]
        leaves = [xp.moveaxis(own[name], 1, 0) for name in names]
        ends = self.ends[:, self.which]
        start = xp.zeros_like(numbers[0])[..., None] + self._whole(None)
        items = (numbers[:size], numbers[size:], ends[0], ends[1], scaled, eye, *leaves)
        t = fold(step, start, items)[..., self.which]
        return self.unstandardise(t)

    def _whole(self, own: Array | None) -> Array:
        """The group's vector: latents before the site, its own, and zeros."""
        xp = array_namespace(self.inputs)
        parts = [self.before] if self.start else []
        if own is not None:
            parts.append(own)
        rest = self.loc.shape[0] - sum(part.shape[-1] for part in parts)
        if rest:
            parts.append(xp.zeros_like(self.loc[:rest]))
        shape = np.broadcast_shapes(*(tuple(part.shape[:-1]) for part in parts))
        return xp.concat([xp.broadcast_to(p, (*shape, p.shape[-1])) for p in parts], axis=-1)


def log_probs_of_group(
    group: Group,
    params: Mapping[str, Array],
    t: Array,
    inputs: Array,
    features: Array,
    ends: Array,
    scale: Array,
    loc: Array,
    components: int,
    flows: Mapping[str, Flow],
) -> Array:
    """
    Log density of every number for every member, in nats per unit of the standardised space.

    That of a site with a flow is shared out to its numbers.

    :param group: the group.
    :param params: of its mixtures.
    :param t: standardised latents, (1 or M,) + batch + (D,).
    :param inputs: what the nets see, (1 or M,) + batch + (V,).
    :param features: what the regression sees, (1 or M,) + batch + (N,).
    :param ends: standardised ends of the intervals, of shape (2, D).
    :param scale: of the latents, of shape (D,).
    :param loc: their location.
    :param components: K.
    :param flows: by site, of those that have one.
    :return: of shape (M, D) + batch.
    """
    xp, parts = array_namespace(t), []
    for which, classes, flow in _runs(group, flows):
        if flow is not None:
            context = side_by_side([inputs, t[..., : which.start]])
            found = flow.log_prob(params, t[..., which], context)
            parts.append(xp.moveaxis(shared_out(found, which.stop - which.start), -1, 1))
            continue
        raw = t[..., which] * scale[which] + loc[which] if classes else None
        parts.append(_log_probs(params, t, inputs, features, ends, which, classes, components, raw))
    return xp.concat(parts, axis=1)


def _runs(group: Group, flows: Mapping[str, Flow]) -> list[tuple[slice, int, Flow | None]]:
    """Slices of neighbouring mixtures, each discrete site with its classes, each flow."""
    found: list[tuple[slice, int, Flow | None]] = []
    slices = group.slices
    for variable in group.variables:
        own, classes, flow = slices[variable.name], variable.num_classes, flows.get(variable.name)
        if found and not classes and flow is None and found[-1][1:] == (0, None):
            found[-1] = (slice(found[-1][0].start, own.stop), 0, None)
        else:
            found.append((own, classes, flow))
    return found


def _log_probs(
    params: Mapping[str, Array],
    t: Array,
    inputs: Array,
    features: Array,
    ends: Array,
    which: slice,
    classes: int,
    components: int,
    raw: Any,
) -> Array:
    """Of shape (M, d) + batch."""
    xp, params = array_namespace(t), select(params, which)
    if classes:
        logits = outputs(params, t, inputs, features)[2][..., :classes]
        log_probs = log_softmax(logits)
        index = xp.moveaxis(raw, -1, 1)[..., None]
        labels = cast(xp.arange(classes), t)
        chosen = xp.where(xp.abs(labels - index) < 0.5, log_probs, 0.0)
        return xp.sum(chosen, axis=-1)
    found = mixture(params, t, inputs, features, components)
    own = xp.moveaxis(t[..., which], -1, 1)
    batch = [1] * (len(own.shape) - 2)
    low, high = (xp.reshape(end[which], (1, -1, *batch)) for end in ends)
    return log_density(found, own, low, high)
