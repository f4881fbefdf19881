# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
What the conditionals of each group of latents see of the data and of the latents before them.

Data in the group's own plates are seen as they are; data in further plates by a summary that does
not depend on their order: mean, spread and count over those plates. Local latents see the summaries
of global ones too, and all latents before them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from spread_core.amortized import screening
from spread_core.amortized.columns import IGNORED, fit_columns, fit_scale, standardised, to_scores
from spread_core.amortized.heavy import counted, fit_heavy, heavy_columns
from spread_core.amortized.layout import (
    Group,
    Variable,
    depth_of,
    group_variables,
)
from spread_core.amortized.mixture import FAR, data_features, latent_features
from spread_core.amortized.summary import Inside, Pool, as_it_is, fit_against, moments, pooled
from spread_core.amortized.tails import fit_tails, tame
from spread_core.math._arrays import Array
from spread_core.messages import amortized as messages
from spread_core.validation import as_host

Fitted = Mapping[str, Any]

# Of a site with a learned embedding, the regression sees the plain numbers if they are few.
_FEW = 50


class Context:
    """
    Latents and data of a program, in groups.

    :param latents: the latents, in the order of the program.
    :param data: the observed sites.
    :raises ValueError: if one has no elements.
    """

    #: Keys of the groups of data of which not everything counted when the guide was set up.
    masked: frozenset[str] = frozenset()

    #: Names of data sites in plates that have heavy tails.
    heavy: frozenset[str] = frozenset()

    #: Names of data sites with a learned embedding, whose plain numbers the nets do not see.
    embedded: frozenset[str] = frozenset()

    def __init__(self, latents: list[Variable], data: list[Variable]) -> None:
        for variable in [*latents, *data]:
            if not math.prod((*variable.batch_shape, *variable.event_shape)):
                raise ValueError(messages.empty_site(variable.name))
        self.latents, self.sites = latents, data
        self.groups = group_variables(latents)
        self.data = group_variables(data)
        self.depth = depth_of([*latents, *data])

    @property
    def ordered(self) -> list[str]:
        """Names of plates that are dims of one vector, as their elements differ."""
        sites = [*self.latents, *self.sites]
        return sorted({n for v in sites for n in v.frames} - {n for v in sites for n in v.plates})

    def without(self, plates: Collection[str]) -> Context:
        """
        The same sites, with some plates as dims of one vector.

        :param plates: names of these plates.
        """

        def opened(variable: Variable) -> Variable:
            kept = {name: dim for name, dim in variable.plates.items() if name not in plates}
            return dataclasses.replace(variable, plates=kept)

        found = Context(*([opened(v) for v in sites] for sites in (self.latents, self.sites)))
        found.masked, found.embedded, found.heavy = self.masked, self.embedded, self.heavy
        return found

    def levels(self, group: Group, data: Group) -> list[frozenset[str]]:
        """
        The plates at which the group sees data: own ones, those of each latent before it, none.

        :param group: the latents.
        :param data: the data.
        """
        earlier = [g.plates for g in self.groups if g.plates < group.plates]
        stacks = [group.plates, *earlier, frozenset[str]()]
        found = dict.fromkeys(data.plates & stack for stack in stacks)
        return sorted(found, key=lambda level: (-len(level), sorted(level)))

    def sizes(self, values: Mapping[str, Any]) -> dict[str, int]:
        """
        Sizes of plates by name.

        :param values: rows of values of sites.
        """
        found: dict[str, int] = {}
        for variable in [*self.latents, *self.sites]:
            if variable.name in values:
                batch = values[variable.name].shape[1 : 1 + len(variable.batch_shape)]
                found |= {name: batch[dim] for name, dim in variable.plates.items()}
        return found

    def axes(self, group: Group, level: frozenset[str]) -> list[int]:
        """The axes over which vectors of a group are pooled to a level."""
        return [dim - 1 for plate, dim in group.dims.items() if plate not in level]

    def scores(
        self, fitted: Fitted, values: Mapping[str, Array], lead: int = 0
    ) -> dict[str, Array]:
        """
        Data as normal scores, by group.

        :param fitted: what :meth:`fit` returned.
        :param values: by observed site.
        :param lead: number of leading dims.
        """
        return {
            g.key: to_scores(g.join(values, self.depth, lead), fitted["data"][g.key])
            for g in self.data
        }

    def columns(
        self,
        group: Group,
        vectors: Mapping[str, Array],
        masks: Mapping[str, Any],
        pool: Pool = moments,
        inside: Inside = as_it_is,
    ) -> Array:
        """
        Numbers that describe the data to a group, of shape lead + plates + (numbers,).

        :param group: the latents.
        :param vectors: that describe the data, by group.
        :param masks: which elements of the data count, by group; None for all.
        :param pool: makes a summary of what is in further plates.
        :param inside: makes what is seen of the data in the group's own plates.
        :raises ValueError: if data are masked, but none were when the guide was set up.
        """
        parts: list[Array] = []
        for data in self.data:
            if data.key not in vectors:
                continue
            own, mask = vectors[data.key], masks.get(data.key)
            xp = array_namespace(own)
            if mask is None and data.key in self.masked:
                mask = xp.ones_like(own[..., 0], dtype=xp.bool)
            if mask is not None:
                if data.key not in self.masked:
                    raise ValueError(messages.masked_now([v.name for v in data.variables]))
                own = xp.where(mask[..., None], own, 0.0)  # what is masked may be NaN
            for level in self.levels(group, data):
                axes = self.axes(data, level)
                parts += pool(data, level, own, mask, axes) if axes else inside(data, own, mask)
        return side_by_side(parts)

    def summaries(self, data: Group) -> dict[str, list[int]]:
        """
        The axes over which a group of data is pooled, by the name of what is left.

        :param data: the data.
        """
        levels = {level for group in self.groups for level in self.levels(group, data)}
        axes = {_level_name(level): self.axes(data, level) for level in levels}
        return {name: along for name, along in sorted(axes.items()) if along}

    def described(
        self,
        group: Group,
        fitted: Fitted,
        scores: Mapping[str, Array],
        masks: Mapping[str, Any],
    ) -> tuple[Array, int]:
        """
        What a group's regression sees of the data, and how many of these numbers its nets see.

        :param group: the latents.
        :param fitted: what :meth:`fit` returned.
        :param scores: data as normal scores, by group.
        :param masks: which elements of the data count, by group; None for all.
        """

        def columns(few: bool) -> Array | None:
            names = {
                data.key: [
                    v.name
                    for v in data.variables
                    if (v.name in self.embedded) == few and (not few or v.size <= _FEW)
                ]
                for data in self.data
            }
            own = {data.key: data.select(scores[data.key], names[data.key]) for data in self.data}
            if few:
                own = {key: part for key, part in own.items() if part.shape[-1]}

            def pool(
                data: Group, level: frozenset[str], part: Array, mask: Any, axes: list[int]
            ) -> list[Array]:
                if mask is None:
                    return pooled(part, mask, axes, together=True)
                against = fitted["data"][data.key]["against"][_level_name(level)]
                against = data.select(against, names[data.key])
                return pooled(part, mask, axes, against, together=True)

            return self.columns(group, own, masks, pool) if own else None

        seen, rest = columns(few=False), columns(few=True) if self.embedded else None
        assert seen is not None
        more = heavy_columns(self, group, fitted, scores, masks)
        seen = seen if more is None else side_by_side([seen, more])
        return (seen if rest is None else side_by_side([seen, rest])), seen.shape[-1]

    def size_seen(self, group: Group) -> int:
        """
        How many plain numbers of the data a group's nets see.

        :param group: the latents.
        """
        ones = (1,) * self.depth
        zeros = {data.key: np.zeros((*ones, data.size)) for data in self.data}
        masks = {key: np.ones(ones, bool) for key in self.masked}
        against = {
            data.key: {n: np.zeros((len(a), data.size)) for n, a in self.summaries(data).items()}
            for data in self.data
        }
        none = {data.key: np.zeros(data.size) for data in self.data}
        fitted = {
            "data": {
                key: {"against": own, "loc": none[key], "scale": none[key]}
                for key, own in against.items()
            }
        }
        return self.described(group, fitted, zeros, masks)[1]

    def before(self, group: Group, latents: Mapping[str, Array]) -> Array | None:
        """
        The standardised latents of earlier groups, pooled where they are in other plates.

        :param group: the latents that are to see them.
        :param latents: standardised vectors by group.
        """
        parts: list[Array] = []
        for earlier in self.groups[: self.groups.index(group)]:
            own = latents[earlier.key]
            axes = self.axes(earlier, earlier.plates & group.plates)
            parts += pooled(own, None, axes) if axes else [own]
        return side_by_side(parts) if parts else None

    def check_masked(self, group: Group) -> None:
        """
        Refuse masked latents that others would see by a summary of all, masked or not.

        :param group: of latents, some of which are masked.
        :raises ValueError: naming them and the others.
        """
        for later in self.groups[self.groups.index(group) + 1 :]:
            if self.axes(group, group.plates & later.plates):
                names = ([v.name for v in each.variables] for each in (group, later))
                raise ValueError(messages.masked_and_pooled(*names))

    def inputs(
        self, group: Group, fitted: Fitted, described: tuple[Array, int], before: Array | None
    ) -> tuple[Array, Array]:
        """
        What a group's nets and its regression see; nets see what embeddings have learned, too.

        :param group: the latents.
        :param fitted: what :meth:`fit` returned.
        :param described: what :meth:`described` returned.
        :param before: what :meth:`before` returned.
        :return: of shapes lead + plates + (V,) and lead + plates + (N,).
        """
        own, (columns, seen) = fitted["inputs"][group.key], described
        v = standardised(columns, own["columns"])
        features = standardised(data_features(v), own["features"])
        v = v[..., :seen] * own["weights"]
        if before is None:
            return v, features
        return side_by_side([v, before]), side_by_side([features, latent_features(before)])

    def standardise(self, group: Group, fitted: Fitted, vectors: Array) -> Array:
        """
        Latents as the conditionals know them.

        :param group: the latents.
        :param fitted: what :meth:`fit` returned.
        :param vectors: unconstrained, of shape lead + plates + (size,).
        """
        own = fitted["latents"][group.key]
        return (tame(vectors, own) - own["loc"]) / own["scale"]

    def fit(
        self,
        latents: Mapping[str, np.ndarray],
        data: Mapping[str, np.ndarray],
        masks: Mapping[str, np.ndarray | None],
    ) -> dict[str, Any]:
        """
        Standardisation from simulations.

        :param latents: unconstrained values by site, of shape (simulations,) + site's.
        :param data: values by observed site, alike.
        :param masks: which elements of the data count, by group, of shape (simulations,) + plates;
            None for all.
        :return: nested dicts of arrays.
        """
        fitted: dict[str, Any] = {"latents": {}, "data": {}, "inputs": {}}
        if self.ordered:  # as keys, which are known under jit too
            fitted["ordered"] = {name: np.ones((), np.float32) for name in self.ordered}
        for group in self.groups:
            vectors = group.join(latents, self.depth, 1).reshape(-1, group.size)
            tails = fit_tails(vectors, group.is_open)
            found = fit_scale(tame(vectors, tails)) | tails
            found["reach"] = np.full_like([found["loc"]] * 2, [[-FAR], [FAR]])
            fitted["latents"][group.key] = found
        for group in self.data:
            rows = _some(counted(group.join(data, self.depth, 1), masks.get(group.key)))
            fitted["data"][group.key] = fit_columns(rows)
            may = np.concatenate([np.full(v.size, v.name in self.heavy) for v in group.variables])
            if may.any():
                fitted["data"][group.key] = fit_heavy(fitted["data"][group.key], rows, may)
        scores = self.scores(fitted, data, 1)
        for group in self.data:
            if group.key in self.masked:
                own, mask = scores[group.key], masks.get(group.key)
                mask = np.ones(own.shape[:-1], bool) if mask is None else mask
                own = np.where(mask[..., None], own, 0.0)
                fitted["data"][group.key]["against"] = {
                    name: fit_against(own, mask, axes)
                    for name, axes in self.summaries(group).items()
                }
        for group in self.groups:
            columns, seen = self.described(group, fitted, scores, masks)
            inputs: dict[str, Any] = {"columns": fit_scale(_rows(columns), IGNORED)}
            v = standardised(columns, inputs["columns"])
            inputs["features"] = fit_scale(data_features(_rows(v)), IGNORED)
            vectors = group.join(latents, self.depth, 1)
            wide = np.broadcast_to(v[..., :seen], (*vectors.shape[:-1], seen))
            inputs["weights"] = screening.weights(_rows(vectors), _rows(wide))
            fitted["inputs"][group.key] = inputs
        return fitted


def told(context: Context, fitted: Fitted) -> dict[str, Any]:
    """
    What the standardisation does beside centring and scaling.

    :param context: latents and data.
    :param fitted: what :meth:`Context.fit` returned.
    :return: ``"tamed"``, the latents with heavy tails; ``"faint"``, how many numbers of the data
        have nothing to do with the latents, by group of these.
    """
    tamed = [
        name
        for group in context.groups
        for name, place in group.slices.items()
        if (as_host(fitted["latents"][group.key]["spread"])[place] > 0).any()
    ]
    faint = {
        group.key: int((as_host(fitted["inputs"][group.key]["weights"]) < 1).sum())
        for group in context.groups
    }
    return {"tamed": tamed, "faint": {key: count for key, count in faint.items() if count}}


def _level_name(level: frozenset[str]) -> str:
    return "_".join(sorted(level)) or "global"


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(math.prod(values.shape[:-1]), values.shape[-1])


def _some(rows: np.ndarray, most: int = 50_000) -> np.ndarray:
    """Rows enough to know a distribution by, evenly chosen."""
    return rows[:: max(1, len(rows) // most)]


def side_by_side(parts: list[Array]) -> Array:
    """
    Vectors as one, whose other axes broadcast against one another.

    :param parts: of shape batch + (any,).
    """
    xp = array_namespace(*parts)
    shape = np.broadcast_shapes(*(tuple(part.shape[:-1]) for part in parts))
    return xp.concat([xp.broadcast_to(p, (*shape, p.shape[-1])) for p in parts], axis=-1)
