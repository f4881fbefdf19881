# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What an amortised guide knows of the learned embeddings of its data, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from spread_core.amortized import attention
from spread_core.amortized.context import Context, side_by_side
from spread_core.amortized.embedding import (
    Embedding,
    Normal,
    Perceptron,
    by_site,
    leaf_name,
    rows_of,
)
from spread_core.amortized.layout import Group, Variable
from spread_core.amortized.mixture import same_ndim
from spread_core.amortized.summary import Pool, moments
from spread_core.math._arrays import Array
from spread_core.messages import embeddings as texts

SUMMARIES = ("moments", "attention")

#: The data of an embedded group as training keeps them: vectors, and what counts of them.
Told = Mapping[str, tuple[Array, ...]]

# Begins their names among what training keeps; no group of latents is called so.
_DATA = "data "


class HasEmbedding:
    """The embeddings of a guide's data sites."""

    ensemble: int
    prefix: str
    summary: str
    context: Any

    def _set_embedding(self, embedding: Any, summary: str) -> None:
        """
        Choose embeddings and summary.

        :param embedding: None, "mlp", a module, or a dict of these by site.
        :param summary: one of :data:`SUMMARIES`.
        :raises ValueError: for another word.
        :raises TypeError: for what is no module.
        """
        if summary not in SUMMARIES:
            raise ValueError(texts.unknown_summary(summary))
        self.summary = summary
        # In a dict: a module must not become a part of a guide that is one.
        self._embedding = {"": embedding}
        self._embeddings: dict[str, Embedding] = {}
        for net in by_site(embedding, [""]).values():
            if net != "mlp":
                self._check_module(net)

    def _check_module(self, module: Any) -> None:
        """Refuse what is no module of this backend."""
        raise NotImplementedError

    def _new_embedding(self, module: Any, variable: Variable) -> Embedding:
        """A module in front of a site."""
        raise NotImplementedError

    def _check_names(self, context: Context) -> None:
        """
        Refuse embeddings of other sites than those of the data.

        :param context: latents and data of the model.
        """
        names, embedding = [v.name for v in context.sites], self._embedding[""]
        if isinstance(embedding, Mapping):
            for name in embedding:
                if name not in names:
                    raise ValueError(texts.no_embedded_site(name, names))
        elif embedding not in (None, "mlp") and len(names) > 1:
            raise ValueError(texts.whose_embedding(names))

    def _embed(self, context: Context) -> None:
        """
        Make the embeddings, once it is known which plates are vectors.

        :param context: latents and data of the model.
        """
        self._check_names(context)
        nets = by_site(self._embedding[""], [v.name for v in context.sites])
        if self.summary == "attention":  # which asks a net of the elements
            nets = {v.name: "mlp" for v in context.sites if v.plates} | nets
        self._embeddings = {
            v.name: Perceptron(v) if nets[v.name] == "mlp" else self._new_embedding(nets[v.name], v)
            for v in context.sites
            if v.name in nets
        }
        context.embedded = frozenset(self._embeddings)

    @property
    def embedding_name(self) -> str:
        """What the params of all embeddings are called among the params."""
        return f"{self.prefix}_embedding"

    @property
    def learned_names(self) -> list[str]:
        """The names of the params of embeddings: one, or none."""
        return [self.embedding_name] if self._embeddings else []

    def embedding_options(self) -> dict[str, Any]:
        """What the guide was made with, of this, without modules."""
        embedding = self._embedding[""]
        if isinstance(embedding, Mapping):
            embedding = {
                n: net if net in (None, "mlp") else _own(net) for n, net in embedding.items()
            }
        elif embedding not in (None, "mlp"):
            embedding = _own(embedding)
        return {"embedding": embedding, "summary": self.summary}

    def initial_embedding(self, normal: Normal, key: Any = None) -> dict[str, Any]:
        """
        Params of all embeddings before any training.

        :param normal: standard normal numbers of a shape.
        :param key: the backend's random key, if it has one.
        """
        params: dict[str, Any] = {}
        for name in sorted(self._embeddings):
            params |= self._embeddings[name].initial(normal, self.ensemble, key)
        if self.summary == "attention":
            sizes = {data.key: self._width(data) for data in self.context.data}
            for prefix, key in self._pools().items():
                params |= attention.initial(normal, self.ensemble, sizes[key], prefix)
        return params

    def told(self, scores: Mapping[str, Array], masks: Mapping[str, Any]) -> dict[str, Any]:
        """
        What embeddings see of the data, by group of data.

        :param scores: data as normal scores, by group.
        :param masks: what counts of them, by group.
        """
        found: dict[str, tuple[Array, ...]] = {}
        for data in self.context.data:
            if names := self._names(data):
                own, mask = data.select(scores[data.key], names), masks.get(data.key)
                xp = array_namespace(own)
                if mask is None and data.key in self.context.masked:
                    mask = xp.ones_like(own[..., 0], dtype=xp.bool)
                if mask is not None:  # what is masked may be NaN
                    own = xp.where(mask[..., None], own, 0.0)
                found[_DATA + data.key] = (own,) if mask is None else (own, mask)
        return found

    def learned(self, params: Mapping[str, Any], told: Told) -> dict[str, Array]:
        """
        What the embeddings tell each group of latents, (M,) + lead + plates + (numbers,).

        :param params: of the guide, by name.
        :param told: as :meth:`told` gives it, with an axis of members, of size 1 or M, in front.
        :return: by group; empty without embeddings.
        """
        if not self._embeddings:
            return {}
        own = params[self.embedding_name]
        embedded = self._embedded(own, told)
        return {g.key: self._told_to(embedded, own, told, g) for g in self.context.groups}

    def _embedded(self, params: Mapping[str, Array], told: Told) -> dict[str, Array]:
        """Embedded elements of the data, by group, of shape (M,) + lead + plates + (numbers,)."""
        found = {}
        for data in self.context.data:
            parts, start = [], 0
            for variable in data.variables:
                if variable.name not in self._embeddings:
                    continue
                vectors = told[_DATA + data.key][0]
                own = vectors[..., start : start + variable.size]
                start += variable.size
                made = self._embeddings[variable.name](params, rows_of(own, variable))
                xp = array_namespace(made)
                parts.append(xp.reshape(made, (made.shape[0], *own.shape[1:-1], made.shape[-1])))
            if parts:
                found[data.key] = side_by_side(parts)
        return found

    def _told_to(
        self,
        embedded: Mapping[str, Array],
        params: Mapping[str, Array],
        told: Told,
        group: Group,
    ) -> Array:
        """Embedded data as a group sees them: its own as they are, others by their summary."""
        masks = {key[len(_DATA) :]: parts[1] > 0.5 for key, parts in told.items() if len(parts) > 1}

        def attend(
            data: Group, level: frozenset[str], own: Array, mask: Any, axes: list[int]
        ) -> list[Array]:
            # The count stands beside the plain numbers, and need not be here again.
            xp, along = array_namespace(own), [axis + own.ndim for axis in axes]
            kept = [axis for axis in range(own.ndim - 1) if axis not in along]
            flat = xp.permute_dims(own, (*kept, *along, own.ndim - 1))
            shape = [own.shape[axis] for axis in kept]
            flat = xp.reshape(flat, (*shape, math.prod(own.shape[a] for a in along), own.shape[-1]))
            if mask is not None:
                mask = xp.broadcast_to(mask, own.shape[:-1])
                mask = xp.reshape(xp.permute_dims(mask, (*kept, *along)), flat.shape[:-1])
            found = attention.attend(params, _pool_name(data, level), flat, mask)
            ends = [1 if axis in along else own.shape[axis] for axis in range(own.ndim - 1)]
            return [xp.reshape(found, (*ends, attention.WIDTH))]

        pool: Pool = attend if self.summary == "attention" else moments
        columns: Array = self.context.columns(group, embedded, masks, pool)
        return columns

    def size_learned(self, group: Group) -> int:
        """
        How many numbers embeddings tell a group.

        :param group: the group.
        """
        if not self._embeddings:
            return 0
        ones = (1,) * self.context.depth

        def attended(*_: Any) -> list[Array]:
            return [np.zeros((*ones, attention.WIDTH))]

        widths = {data.key: self._width(data) for data in self.context.data}
        found = self.context.columns(
            group,
            {key: np.zeros((*ones, width)) for key, width in widths.items() if width},
            {key: np.ones(ones, bool) for key in self.context.masked},
            attended if self.summary == "attention" else moments,
        )
        return int(found.shape[-1])

    def _names(self, data: Group) -> list[str]:
        return [v.name for v in data.variables if v.name in self._embeddings]

    def _width(self, data: Group) -> int:
        return sum(self._embeddings[name].width for name in self._names(data))

    def _pools(self) -> dict[str, str]:
        """Groups of data that are pooled, by the name of the pool."""
        context = self.context
        return {
            _pool_name(data, level): data.key
            for group in context.groups
            for data in context.data
            if self._width(data)
            for level in context.levels(group, data)
            if context.axes(data, level)
        }


def seen(inputs: Array, learned: Array | None) -> Array:
    """
    All that nets see, with an axis of members in front.

    :param inputs: what needs no net, (1 or M,) + batch + (V,).
    :param learned: what embeddings have made, (M,) + batch + (numbers,); None without.
    """
    return inputs if learned is None else side_by_side(same_ndim(inputs, learned))


def _pool_name(data: Group, level: frozenset[str]) -> str:
    return leaf_name(f"{data.key} to {'_'.join(sorted(level)) or 'global'}", "")


def _own(module: Any) -> dict[str, str]:
    """Stands for a module, which is not written."""
    return {"module": type(module).__name__}


def rebuilt_options(options: Mapping[str, Any], embedding: Any) -> dict[str, Any]:
    """
    The options of a saved guide, with its modules.

    :param options: as they were saved.
    :param embedding: as the guide took it; None if it had no modules.
    :raises ValueError: if it had some.
    """
    saved = options.get("embedding")
    if embedding is not None:
        return {**options, "embedding": embedding}
    parts = saved.values() if isinstance(saved, Mapping) and "module" not in saved else [saved]
    if any(isinstance(part, Mapping) for part in parts):
        raise ValueError(texts.module_again())
    return dict(options)
