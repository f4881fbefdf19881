# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The prior of a program whose density nobody knows: it is run, with its data put in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spread_core.messages import amortized as messages
from spread_core.runs import Runs, finite_rows

# Numbers in a chunk of draws, at most, and rows.
_MOST_NUMBERS, _MOST_ROWS = 4_000_000, 8192


class ProgramPrior:
    """
    Draws of a program's latents. Its data are given, so that no :class:`Simulator` runs for them;
    what the program's body computes runs for every draw.

    :param program: function of a seed and of given values that makes a program to run.
    :param latents: names of the latents.
    :param observed: dict from data site to the observation.
    :raises ValueError: if that holds NaN or inf where it counts.
    """

    def __init__(
        self,
        program: Callable[[int, Mapping[str, Any]], Any],
        latents: Any,
        observed: Mapping[str, np.ndarray],
    ) -> None:
        self._make, self.latents = program, tuple(latents)
        self.observed = {name: value[None] for name, value in observed.items()}
        self._seed = -1
        self._program: Any = None
        self.chunk_size = 1000
        #: A run at the observation, for the masks there.
        self.first = self.runs(0, 1, 0)
        for name, value in self.observed.items():
            if not finite_rows(value, self.first.masks.get(name)).all():
                raise ValueError(messages.nonfinite_data(name))
        size = sum(math.prod(value.shape[1:]) for value in self.first.values.values())
        self.chunk_size = max(256, min(_MOST_ROWS, _MOST_NUMBERS // max(1, size)))

    def runs(self, start: int, stop: int, seed: int) -> Runs:
        """
        Runs with these numbers.

        :param start: the first.
        :param stop: one after the last.
        :param seed: of all random numbers.
        """
        if self._program is None or seed != self._seed:
            self._program, self._seed = self._make(seed, self.observed), seed
        self._program.chunk_size = self.chunk_size
        found: Runs = self._program(start, stop)
        if not found.values:
            self._program.raise_at(start)
        return found

    def draw(self, start: int, stop: int, seed: int) -> dict[str, np.ndarray]:
        """
        Draws of the latents.

        :param start: number of the first.
        :param stop: one after the last.
        :param seed: of all random numbers.
        """
        values = self.runs(start, stop, seed).values
        return {name: values[name] for name in self.latents}

    def log_prob(self, values: Mapping[str, Any]) -> np.ndarray:
        """
        Log densities of latents, in nats.

        :param values: dict from site to values, one a row.
        :raises NotImplementedError: if a site has none.
        """
        given = {name: values[name] for name in self.latents}
        number = len(given[self.latents[0]])
        program = self._make(0, given | self.observed)
        size = program.chunk_size = min(self.chunk_size, number)
        parts = [
            program.log_prior(self.latents, start, min(start + size, number))
            for start in range(0, number, size)
        ]
        return np.concatenate(parts)

    def check(self, others: Mapping[str, np.ndarray]) -> None:
        """
        Refuse a program in which latents depend on data, or masks of data on latents.

        :param others: other values of the data, one a row.
        :raises ValueError: naming the site.
        """
        first = self.runs(0, 50, 0)
        other = self._make(0, others)
        other.chunk_size = self.chunk_size
        again = other(0, 50)
        for name in self.latents:
            one, two = (runs.values[name] for runs in (first, again))
            if not ((one == two) | (one != one)).all():  # a run that failed is NaN
                raise ValueError(messages.latents_after_data(name))
        for name in self.observed:
            mask = first.masks.get(name)
            if mask is not None and (mask != mask[:1]).any():
                raise ValueError(messages.masks_differ(name))
