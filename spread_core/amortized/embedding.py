# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Learned embeddings of observed sites: nets that stand between the data and the conditionals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from array_api_compat import array_namespace

from spread_core.amortized.layout import Variable
from spread_core.amortized.mixture import silu
from spread_core.math._arrays import Array

Normal = Callable[[tuple[int, ...]], Any]


class Embedding(Protocol):
    """
    The net in front of one observed site, for every member of an ensemble.

    Members have params of their own, found among those of all embeddings by their names.
    """

    #: How many numbers it makes of an element.
    width: int

    def initial(self, normal: Normal, members: int, key: Any) -> dict[str, Any]:
        """
        Params before any training, (M, ...) each.

        :param normal: standard normal numbers of a shape.
        :param members: M.
        :param key: the backend's random key, if it has one.
        """

    def __call__(self, params: Mapping[str, Array], x: Array) -> Array:
        """
        Elements as the conditionals see them, of shape (M, rows, width).

        :param params: of all embeddings.
        :param x: elements as normal scores, (1 or M, rows) + their shape.
        """


def leaf_name(site: str, path: str) -> str:
    """
    What a param of a site's embedding is called among those of all embeddings.

    :param site: name of the site.
    :param path: of the param in its net.
    """
    return f"{site}:{path}".replace(".", "/")  # torch has no dots in names of params


def element_shape(variable: Variable) -> tuple[int, ...]:
    """
    The shape of an element as its embedding takes it: a number is a vector of one.

    :param variable: the observed site.
    """
    shape = (*(size for _, size in variable.loose), *variable.event_shape)
    return shape or (1,)


class Perceptron:
    """
    Two hidden layers of 64 and 20 outputs.

    :param variable: the observed site.
    """

    width = 20
    _hidden = (64, 64)

    def __init__(self, variable: Variable) -> None:
        self._site, self._inputs = variable.name, variable.size

    def initial(self, normal: Normal, members: int, key: Any) -> dict[str, Any]:
        """Params before any training; see :class:`Embedding`."""
        sizes = [self._inputs, *self._hidden, self.width]
        found = {}
        for number, (rows, columns) in enumerate(itertools.pairwise(sizes)):
            weight = normal((members, rows, columns)) * (1 / math.sqrt(rows))
            found[leaf_name(self._site, f"weight_{number}")] = weight
            # Units that differ in place can tell where a single number is.
            bias = normal((members, 1, columns)) if number == 0 else 0 * weight[:, :1]
            found[leaf_name(self._site, f"bias_{number}")] = bias
        return found

    def __call__(self, params: Mapping[str, Array], x: Array) -> Array:
        """Elements as the conditionals see them; see :class:`Embedding`."""
        xp = array_namespace(x)
        h = xp.reshape(x, (*x.shape[:2], -1))
        last = len(self._hidden)
        for number in range(last + 1):
            weight, bias = (
                params[leaf_name(self._site, f"{kind}_{number}")] for kind in ("weight", "bias")
            )
            new = xp.matmul(h, weight) + bias
            new = new if number == last else silu(new)
            h = h + new if 0 < number < last else new
        return h


def by_site(embedding: Any, sites: Sequence[str]) -> dict[str, Any]:
    """
    Which site has which embedding, without those that have none.

    :param embedding: as the guide takes it: None, "mlp", one net or a dict by site.
    :param sites: names of the observed sites.
    """
    if not isinstance(embedding, Mapping):
        embedding = dict.fromkeys(sites, embedding)
    return {name: net for name, net in embedding.items() if net is not None}


def rows_of(x: Array, variable: Variable) -> Array:
    """
    Vectors as rows of elements.

    :param x: (1 or M,) + lead + plates + (size,).
    :param variable: the site.
    :return: (1 or M, rows) + shape of an element.
    """
    count = math.prod(x.shape[1:-1])
    return array_namespace(x).reshape(x, (x.shape[0], count, *element_shape(variable)))


def dummy(rows: int, variable: Variable) -> np.ndarray:
    """
    Some elements of zeros, to see what a net makes of them.

    :param rows: how many.
    :param variable: the site.
    """
    return np.zeros((rows, *element_shape(variable)), np.float32)
