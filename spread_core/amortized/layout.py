# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Sites of a program as vectors, one for each element of their plates; shapes only.

Vectors of all sites stand side by side: their shape is lead + plates + ``(size,)``, where lead are
dims of samples or particles, and plates has one dim for each that any site has a plate at, of size
1 where this site has none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from array_api_compat import array_namespace

from spread_core.amortized.mixture import FAR
from spread_core.math._arrays import Array

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Variable:
    """
    A site, as the program's trace shows it.

    :param name: its name.
    :param batch_shape: batch shape of its value, plates and other dims alike.
    :param event_shape: shape of one value, unconstrained if :attr:`low` is None.
    :param plates: dim of every plate whose elements are told apart by their latents alone,
        negative, by the plate's name. Other plates are dims of one vector.
    :param frames: alike, of every plate around it.
    :param low: lower end of the support of a latent in an interval; of shape batch + event.
    :param high: upper end.
    :param num_classes: of a discrete latent; 0 for others.
    :param first: the least value of a discrete latent.
    """

    name: str
    batch_shape: Shape
    event_shape: Shape
    plates: Mapping[str, int]
    frames: Mapping[str, int]
    low: Any = None
    high: Any = None
    num_classes: int = 0
    first: int = 0

    @property
    def loose(self) -> list[tuple[int, int]]:
        """Dim and size of the batch dims that belong to no plate: one vector's part."""
        taken = set(self.plates.values())
        sizes = enumerate(self.batch_shape, start=-len(self.batch_shape))
        return [(dim, size) for dim, size in sizes if dim not in taken]

    @property
    def size(self) -> int:
        """Length of one vector."""
        return math.prod(self.event_shape) * math.prod(size for _, size in self.loose)

    @property
    def is_even(self) -> bool:
        """Whether a latent's interval is the same for all elements of its plates."""
        ends = self._all_ends()
        return bool((ends == ends[:, :1]).all())

    def ends(self) -> np.ndarray:
        """Ends of the interval of each of the vector's numbers, of shape (2, size)."""
        if self.low is None:
            return np.stack([np.full(self.size, -FAR), np.full(self.size, FAR)])
        return self._all_ends()[:, 0]

    def _all_ends(self) -> np.ndarray:
        """Ends of the interval of each number of each vector, of shape (2, vectors, size)."""
        shape = (*self.batch_shape, *self.event_shape)
        depth = len(self.batch_shape)
        vectors = [self.join(np.broadcast_to(end, shape), depth) for end in (self.low, self.high)]
        return np.stack([vector.reshape(-1, self.size) for vector in vectors])

    def join(self, value: Array, depth: int, lead: int = 0) -> Array:
        """
        A value as vectors.

        :param value: of shape lead + batch + event.
        :param depth: number of dims for plates.
        :param lead: number of leading dims.
        :return: of shape lead + plates + (size,).
        """
        xp = array_namespace(value)
        batch = len(self.batch_shape)
        end = lead + batch
        loose = [end + dim for dim, _ in self.loose]
        plated = [axis for axis in range(lead, end) if axis not in loose]
        event = list(range(end, len(value.shape)))
        shape = [1] * depth
        for axis in plated:
            shape[axis - end] = value.shape[axis]
        moved = xp.permute_dims(value, (*range(lead), *plated, *loose, *event))
        return xp.reshape(moved, (*value.shape[:lead], *shape, self.size))

    def split(self, vectors: Array, lead: int = 0) -> Array:
        """
        The inverse of :meth:`join`.

        :param vectors: of shape lead + plates + (size,).
        :param lead: number of leading dims.
        """
        xp = array_namespace(vectors)
        dims = vectors.shape[lead:-1]
        plates = sorted(self.plates.values())
        loose = [dim for dim, _ in self.loose]
        sizes = [dims[dim] for dim in plates] + [size for _, size in self.loose]
        value = xp.reshape(vectors, (*vectors.shape[:lead], *sizes, *self.event_shape))
        order = [*plates, *loose]
        back = [lead + order.index(dim) for dim in range(-len(self.batch_shape), 0)]
        event = range(lead + len(order), len(value.shape))
        return xp.permute_dims(value, (*range(lead), *back, *event))


VariableT = TypeVar("VariableT", bound=Variable)


@dataclasses.dataclass(frozen=True)
class Group:
    """
    All variables in the same plates: a vector of :attr:`size` numbers per element.

    :param variables: in the order of the program.
    """

    variables: tuple[Variable, ...]

    @property
    def plates(self) -> frozenset[str]:
        """Names of the plates."""
        return frozenset(self.variables[0].plates)

    @property
    def dims(self) -> dict[str, int]:
        """Dim of every plate by name."""
        return dict(self.variables[0].plates)

    @property
    def key(self) -> str:
        """What the group is called among params."""
        return "_".join(sorted(self.plates)) or "global"

    @property
    def size(self) -> int:
        """Length of one vector."""
        return sum(variable.size for variable in self.variables)

    @property
    def slices(self) -> dict[str, slice]:
        """Where each variable is in the vector."""
        found, start = {}, 0
        for variable in self.variables:
            found[variable.name] = slice(start, start + variable.size)
            start += variable.size
        return found

    @property
    def is_open(self) -> np.ndarray:
        """Which of the numbers are neither in an interval nor classes, of shape (size,)."""
        return np.concatenate(
            [np.full(v.size, v.low is None and not v.num_classes) for v in self.variables]
        )

    def select(self, vectors: Array, names: Sequence[str]) -> Array:
        """
        The part of vectors that belongs to some variables.

        :param vectors: of shape batch + (size,).
        :param names: of the variables, in the order of the group.
        """
        if len(names) == len(self.variables):
            return vectors
        parts = [vectors[..., self.slices[name]] for name in names]
        return array_namespace(vectors).concat([vectors[..., :0], *parts], axis=-1)

    def join(self, values: Mapping[str, Array], depth: int, lead: int = 0) -> Array:
        """
        Values as vectors of shape lead + plates + (size,).

        :param values: by name.
        :param depth: number of dims for plates.
        :param lead: number of leading dims.
        """
        parts = [v.join(values[v.name], depth, lead) for v in self.variables]
        xp = array_namespace(*parts)
        shape = np.broadcast_shapes(*(tuple(part.shape[:-1]) for part in parts))
        wide = [xp.broadcast_to(part, (*shape, part.shape[-1])) for part in parts]
        return xp.concat(wide, axis=-1)


def group_variables(variables: Iterable[Variable]) -> list[Group]:
    """
    The variables by plates, those in the fewest first.

    :param variables: latents or data of a program.
    """
    stacks: dict[frozenset[str], list[Variable]] = {}
    for variable in variables:
        stacks.setdefault(frozenset(variable.plates), []).append(variable)
    groups = [Group(tuple(stack)) for stack in stacks.values()]
    return sorted(groups, key=lambda group: len(group.plates))


def depth_of(variables: Iterable[Variable]) -> int:
    """
    Number of batch dims, of plates and others.

    :param variables: all variables of a program.
    """
    return max((len(v.batch_shape) for v in variables), default=0)
