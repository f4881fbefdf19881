# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The latents of a model, concatenated to one vector per plate stack; shapes only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from spread_core.messages import players

Shape = tuple[int, ...]

#: Standard normal probabilities at -1, 0 and 1: the quantiles there give location and scale of
#: heavy-tailed draws too, whose moments may not exist.
QUANTILES = (0.15865525393145707, 0.5, 0.8413447460685429)

#: Numbers that tell one datum from another in the net of a group that is not amortised.
EMBEDDING_DIM = 8


@dataclasses.dataclass(frozen=True)
class Plate:
    """
    A vectorised plate as a model used it.

    :param name: its name.
    :param dim: its batch dimension, negative.
    :param size: number of data in the run of the model, after subsampling.
    :param full_size: number of data of the whole plate.
    """

    name: str
    dim: int
    size: int
    full_size: int

    def resized(self, num_features: int) -> tuple[int, int]:
        """
        Size and full size of the plate for this many features: of a batch, or of all data.

        :param num_features: number of data that an encoder returned features of.
        """
        if self.size == self.full_size:
            return num_features, num_features
        return (self.size if num_features == self.full_size else num_features), self.full_size


@dataclasses.dataclass(frozen=True)
class Latent:
    """
    A latent site.

    :param name: its name.
    :param batch_shape: batch shape of its value, plates and other dimensions alike.
    :param event_shape: shape of one unconstrained value.
    :param plates: the plates around it.
    """

    name: str
    batch_shape: Shape
    event_shape: Shape
    plates: frozenset[Plate]

    @property
    def loose(self) -> list[tuple[int, int]]:
        """Dimension and size of the batch dimensions that belong to no plate: one vector's part."""
        plated = {plate.dim for plate in self.plates}
        sizes = enumerate(self.batch_shape, start=-len(self.batch_shape))
        return [(dim, size) for dim, size in sizes if dim not in plated]

    @property
    def size(self) -> int:
        """Number of unconstrained values per element of the plates."""
        return math.prod(self.event_shape) * math.prod(size for _, size in self.loose)


class LatentGroup:
    """
    All latents of one plate stack, as a vector of :attr:`size` numbers per element of the plates.

    Arrays of both backends have the three methods that are used here: indexing, ``reshape`` and
    ``swapaxes``.

    :param latents: the latents, at least one.
    """

    def __init__(self, latents: Sequence[Latent]) -> None:
        self.latents = tuple(latents)
        self.plates = sorted(self.latents[0].plates, key=lambda plate: plate.dim)
        self.key = "_".join(plate.name for plate in self.plates) or "latent"
        self.size = sum(latent.size for latent in self.latents)
        self.depth = max((-plate.dim for plate in self.plates), default=0)
        self._widest = max(len(latent.batch_shape) for latent in self.latents)

    @property
    def names(self) -> list[str]:
        """Names of the sites."""
        return [latent.name for latent in self.latents]

    def batch_shape(self, sizes: Mapping[str, int]) -> Shape:
        """
        Batch shape of the vectors.

        :param sizes: size of every plate by name.
        """
        shape = [1] * self.depth
        for plate in self.plates:
            shape[plate.dim] = sizes[plate.name]
        return tuple(shape)

    def noise_size(self, noise_dim: int | None) -> int:
        """
        Dimensions of the noise behind one vector.

        :param noise_dim: how many more than the vector has; by default as many, at least 8.
        """
        return self.size + (max(8, self.size) if noise_dim is None else noise_dim)

    def pooled_axes(self, amortised: bool) -> Shape:
        """
        The axes of draws of shape (draws,) + batch + ``(size,)`` whose elements share one start:
        subsampled plates, of which one run shows a part only, and those that are amortised.

        :param amortised: whether an encoder tells the data apart.
        """
        shared = (plate for plate in self.plates if amortised or plate.size != plate.full_size)
        return (0, *(1 + self.depth + plate.dim for plate in shared))

    def features_fit(self, shape: Sequence[int], sizes: Mapping[str, Collection[int]]) -> bool:
        """
        Whether features of this shape belong to the plates.

        :param shape: shape of the features, whose last dimension is theirs.
        :param sizes: sizes that are possible for every plate, by name; any if left out.
        """
        if len(shape) != self.depth + 1:
            return False
        possible: dict[int, Collection[int] | None] = dict.fromkeys(range(self.depth), (1,))
        for plate in self.plates:
            possible[self.depth + plate.dim] = sizes.get(plate.name)
        return all(wanted is None or shape[axis] in wanted for axis, wanted in possible.items())

    def split(self, vectors: Any, num_samples_dims: int = 0) -> Iterator[tuple[str, Any]]:
        """
        Name and unconstrained value of every latent.

        :param vectors: array of shape sample + batch + ``(size,)``.
        :param num_samples_dims: how many of its leading dimensions are in front of the dimensions
            of plates. Those that a plate made, as of vectorised particles, are not.
        """
        lead, batch = vectors.shape[:num_samples_dims], vectors.shape[num_samples_dims:-1]
        start = 0
        for latent in self.latents:
            part = vectors[..., start : start + latent.size]
            start += latent.size
            missing = len(latent.batch_shape) - len(batch)
            front = [*lead, *[1] * missing, *batch]
            sizes = [size for _, size in latent.loose]
            value = part.reshape((*front, *sizes, *latent.event_shape))
            for index, (dim, size) in enumerate(latent.loose):
                value = value.swapaxes(len(front) + dim, len(front) + index)
                front[dim] = size
            yield latent.name, value.reshape((*front, *latent.event_shape))

    def join(self, values: Mapping[str, Any]) -> list[Any]:
        """
        The inverse of :meth:`split`: parts of shape batch + (latent's size,), to be broadcast and
        concatenated.

        :param values: unconstrained values by name, whose batch dimensions stand where plates put
            them.
        """
        parts = []
        for latent in self.latents:
            value = values[latent.name]
            ndim = len(value.shape) - len(latent.event_shape)
            front = list(value.shape[:ndim])
            value = value.reshape((*front, *[1] * len(latent.loose), *latent.event_shape))
            for index, (dim, _) in enumerate(latent.loose):
                value = value.swapaxes(ndim + dim, ndim + index)
                front[dim] = 1
            if ndim <= self._widest:  # no particles in front: only the plates remain
                front = front[ndim - self.depth :]
            parts.append(value.reshape((*front, latent.size)))
        return parts


def check_sizes(noise_dim: int | None, hidden: Sequence[int], init_samples: int) -> None:
    """
    Refuse sizes of a guide that make no sense.

    :param noise_dim: extra dimensions of the noise, or None.
    :param hidden: sizes of hidden layers.
    :param init_samples: number of draws from the prior.
    :raises ValueError: naming the argument.
    """
    if noise_dim is not None and not _is_count(noise_dim, 0):
        raise ValueError(players.bad_range("noise_dim", noise_dim, "an integer of at least 0"))
    if not isinstance(hidden, Sequence) or not all(_is_count(size, 1) for size in hidden):
        raise ValueError(players.bad_range("hidden", hidden, "a sequence of layer sizes"))
    if not _is_count(init_samples, 2):
        wanted = "an integer of at least 2"
        raise ValueError(players.bad_range("init_samples", init_samples, wanted))


def _is_count(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def group_latents(latents: Iterable[Latent]) -> list[LatentGroup]:
    """
    The latents by plate stack, the global ones first.

    :param latents: all latents of a model.
    """
    stacks: dict[frozenset[Plate], list[Latent]] = {}
    for latent in latents:
        stacks.setdefault(latent.plates, []).append(latent)
    return sorted(map(LatentGroup, stacks.values()), key=lambda group: len(group.plates))
