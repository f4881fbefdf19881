# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Draws and log densities of the sites of a group, number by number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from array_api_compat import array_namespace

from spread_core.amortized.layout import Group, Variable
from spread_core.amortized.mixture import (
    draw,
    ensemble_mean,
    log_density,
    log_softmax,
    mixture,
    outputs,
)
from spread_core.math._arrays import Array, cast


@dataclasses.dataclass(frozen=True)
class Conditional:
    """
    The conditional distribution of one site, given the data and all latents before it.

    :param params: of the group's mixtures, see :func:`~spread_core.amortized.mixture.initial`.
    :param loc: location of the group's latents, of shape (D,).
    :param scale: their scale.
    :param ends: standardised ends of their intervals, of shape (2, D).
    :param before: standardised latents of the group before this site, lead + plates + (start,).
    :param inputs: what the nets see, lead + plates + (V,).
    :param features: what the regression sees, lead + plates + (N,).
    :param variable: the site.
    :param start: where its numbers begin in the group's vector.
    :param components: K.
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

    @property
    def which(self) -> slice:
        """The site's numbers in the group's vector."""
        return slice(self.start, self.start + self.variable.size)

    def standardise(self, vectors: Array) -> Array:
        """
        Unconstrained vectors on the scale of the conditionals.

        :param vectors: lead + plates + (size,).
        """
        return (vectors - self.loc[self.which]) / self.scale[self.which]

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
            self.inputs[None],
            self.features[None],
            self.ends,
            self.which,
            self.variable.num_classes,
            self.components,
            vectors[None] if self.variable.num_classes else None,
        )
        found = xp.moveaxis(ensemble_mean(each), 0, -1)
        if self.variable.num_classes:
            return found
        return found - xp.log(self.scale[self.which])

    def draw(self, uniform: Callable[[tuple[int, ...]], Array], shape: tuple[int, ...]) -> Array:
        """
        Unconstrained vectors, reparametrised except for discrete sites.

        :param uniform: random numbers between 0 and 1 of a shape.
        :param shape: lead + plates of the draws.
        :return: of shape lead + plates + (size,).
        """
        xp = array_namespace(self.inputs)
        drawn: list[Array] = []
        for number in range(self.start, self.start + self.variable.size):
            so_far = xp.stack(drawn, axis=-1) if drawn else None
            t = self._whole(so_far)
            which = slice(number, number + 1)
            given = t[None], self.inputs[None], self.features[None], which
            loc, scale = self.loc[number], self.scale[number]
            if self.variable.num_classes:
                logits = outputs(self.params, *given)[2][..., : self.variable.num_classes]
                log_probs = ensemble_mean(log_softmax(logits))[0]
                ends = xp.cumulative_sum(xp.exp(log_probs), axis=-1)
                place = uniform(shape)[..., None] * ends[..., -1:]
                index = cast(xp.sum(ends[..., :-1] < place, axis=-1), ends)
                drawn.append((index - loc) / scale)
            else:
                found = mixture(self.params, *given, self.components)
                low, high = self.ends[0, number], self.ends[1, number]
                drawn.append(draw(found, uniform(shape), uniform(shape), low, high))
        t = xp.stack(drawn, axis=-1)
        return t * self.scale[self.which] + self.loc[self.which]

    def _whole(self, own: Array | None) -> Array:
        """The group's vector: latents before the site, its own, and zeros."""
        xp = array_namespace(self.inputs)
        parts = [self.before] if self.start else []
        if own is not None:
            parts.append(own)
        like = parts[-1] if parts else self.inputs
        known = sum(part.shape[-1] for part in parts)
        rest = self.loc.shape[0] - known
        lead = like.shape[:-1]
        parts = [xp.broadcast_to(part, (*lead, part.shape[-1])) for part in parts]
        if rest:
            parts.append(xp.zeros_like(like[..., :1]) + xp.zeros_like(self.loc[:rest]))
        return xp.concat(parts, axis=-1)


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
) -> Array:
    """
    Log density of every number for every member, in nats per unit of the standardised space.

    :param group: the group.
    :param params: of its mixtures.
    :param t: standardised latents, (1 or M,) + batch + (D,).
    :param inputs: what the nets see, (1 or M,) + batch + (V,).
    :param features: what the regression sees, (1 or M,) + batch + (N,).
    :param ends: standardised ends of the intervals, of shape (2, D).
    :param scale: of the latents, of shape (D,).
    :param loc: their location.
    :param components: K.
    :return: of shape (M, D) + batch.
    """
    parts = []
    for which, classes in _runs(group):
        raw = t[..., which] * scale[which] + loc[which] if classes else None
        parts.append(_log_probs(params, t, inputs, features, ends, which, classes, components, raw))
    return array_namespace(t).concat(parts, axis=1)


def _runs(group: Group) -> list[tuple[slice, int]]:
    """Slices of neighbouring continuous sites, and each discrete one with its classes."""
    found: list[tuple[slice, int]] = []
    slices = group.slices
    for variable in group.variables:
        own, classes = slices[variable.name], variable.num_classes
        if found and not classes and not found[-1][1]:
            found[-1] = (slice(found[-1][0].start, own.stop), 0)
        else:
            found.append((own, classes))
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
    xp = array_namespace(t)
    if classes:
        logits = outputs(params, t, inputs, features, which)[2][..., :classes]
        log_probs = log_softmax(logits)
        index = xp.moveaxis(raw, -1, 1)[..., None]
        labels = cast(xp.arange(classes), t)
        chosen = xp.where(xp.abs(labels - index) < 0.5, log_probs, 0.0)
        return xp.sum(chosen, axis=-1)
    found = mixture(params, t, inputs, features, which, components)
    own = xp.moveaxis(t[..., which], -1, 1)
    batch = [1] * (len(own.shape) - 2)
    low, high = (xp.reshape(end[which], (1, -1, *batch)) for end in ends)
    return log_density(found, own, low, high)
