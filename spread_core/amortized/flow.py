# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A flow, or another density of a library, at a site of an amortised guide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from array_api_compat import array_namespace

from spread_core.math._arrays import Array


class Flow(Protocol):
    """
    The conditional density of one site's vectors, for every member of an ensemble.

    It takes its params from those of the site's group by their names.
    """

    @property
    def names(self) -> Sequence[str]:
        """Of its params among those of the site's group."""

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients."""

    def log_prob(self, params: Mapping[str, Array], t: Array, context: Array) -> Array:
        """
        Log density in nats, of shape (M,) + batch.

        :param params: of the group, (M, ...) each.
        :param t: standardised vectors, (1 or M,) + batch + (size,).
        :param context: what they are conditioned on, (1 or M,) + batch + (C,).
        """

    def draw(self, params: Mapping[str, Array], context: Array, choose: Array, key: Any) -> Array:
        """
        Vectors of shape batch + (size,), each from one of the members.

        :param params: of the group, (M, ...) each.
        :param context: what they are conditioned on, (1 or M,) + batch + (C,).
        :param choose: uniform numbers of shape batch, which choose the member.
        :param key: the backend's random key, if it has one.
        """


def leaf_name(site: str, path: str) -> str:
    """
    What a param of a site's flow is called among those of its group.

    :param site: name of the site.
    :param path: of the param in the flow.
    """
    return f"{site}:{path}".replace(".", "/")  # torch has no dots in names of params


def is_of_flow(name: str) -> bool:
    """
    Whether a param of a group belongs to a flow.

    :param name: of the param.
    """
    return ":" in name


def shared_out(log_density: Array, size: int) -> Array:
    """
    The density of a vector, the same part of it at each of its numbers.

    Numbers of one vector may stand in several batch elements of a site, each of which has a part.

    :param log_density: of vectors.
    :param size: their length.
    :return: with an axis of this size behind.
    """
    xp = array_namespace(log_density)
    each = (log_density / size)[..., None]
    return xp.broadcast_to(each, (*each.shape[:-1], size))
