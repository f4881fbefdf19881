# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Call a user's function in NumPy on a batch of runs, and check what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from spread_core.messages import distributions

#: Words of 32 bits in a seed.
SEED_WORDS = 4


class BlackBox:
    """
    A simulator, called on batches of any shape.

    Two are equal if they call the same function in the same way, so that JAX compiles once.

    :param fn: from a ``numpy.random.Generator`` and arrays to an array.
    :param event_shape: shape of the result of one run.
    :param event_dims: for each array, how many rightmost dims belong to one run.
    :param vectorized: whether one call has all runs; else each has one.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        event_shape: tuple[int, ...],
        event_dims: tuple[int, ...],
        vectorized: bool,
    ) -> None:
        self.fn, self.event_shape = fn, event_shape
        self.event_dims, self.vectorized = event_dims, vectorized
        try:
            hash(fn)
        except TypeError:
            self._same: Any = id(fn)
        else:
            self._same = fn

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlackBox) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return (self._same, self.event_shape, self.event_dims, self.vectorized)

    def batch_shape(self, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """
        The common shape of arguments without the dims that belong to one run.

        :param shapes: those of the arguments.
        :raises ValueError: if they have none.
        """
        pairs = list(zip(shapes, self.event_dims, strict=True))
        for number, (shape, event_dim) in enumerate(pairs, 1):
            if len(shape) < event_dim:
                raise ValueError(distributions.simulator_too_few_dims(number, shape, event_dim))
        batches = [tuple(shape)[: len(shape) - event_dim] for shape, event_dim in pairs]
        try:
            return np.broadcast_shapes(*batches)
        except ValueError as error:
            raise ValueError(distributions.simulator_batches(shapes, self.event_dims)) from error

    def own_shapes(self, shapes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """
        The dims of arguments that belong to one run.

        :param shapes: those of the arguments.
        """
        pairs = zip(shapes, self.event_dims, strict=True)
        return [tuple(shape)[len(shape) - event_dim :] for shape, event_dim in pairs]

    def seeds_shape(self, batch_shape: Sequence[int]) -> tuple[int, ...]:
        """
        Shape of the seeds of a call: one for all runs if ``vectorized``, else one for each.

        :param batch_shape: shape of the runs.
        """
        return (SEED_WORDS,) if self.vectorized else (*batch_shape, SEED_WORDS)

    def call(self, dtype: Any, seeds: Any, *arrays: Any) -> np.ndarray:
        """
        Run the function: results of shape batch + event.

        :param dtype: their floating type.
        :param seeds: 32-bit words, the last dim one seed. Where calls were put together there are
            several seeds for one generator.
        :param arrays: of shape batch + own shape, one batch for all.
        :raises TypeError: if fn returns anything but real numbers.
        :raises ValueError: if it returns another shape.
        """
        shapes = [np.shape(array) for array in arrays]
        batch = shapes[0][: len(shapes[0]) - self.event_dims[0]]
        count = prod(batch)
        if count == 0:
            return np.zeros((*batch, *self.event_shape), dtype)
        # Copies: fn may write to what it gets, and return what it will write to later.
        rows = [
            np.array(array).reshape(count, *own)
            for array, own in zip(arrays, self.own_shapes(shapes), strict=True)
        ]
        seeds = np.asarray(seeds, np.uint32)
        if self.vectorized:
            given = self._checked(self.fn(np.random.default_rng(seeds.ravel()), *rows), rows)
            values = np.array(given, dtype)
        else:
            values = np.empty((count, *self.event_shape), dtype)
            for index, seed in enumerate(seeds.reshape(count, SEED_WORDS)):
                row = [array[index] for array in rows]
                values[index] = self._checked(self.fn(np.random.default_rng(seed), *row), row)
        return values.reshape((*batch, *self.event_shape))

    def _checked(self, result: Any, inputs: Sequence[Any]) -> np.ndarray:
        shapes = [np.shape(each) for each in inputs]
        try:
            array = np.asarray(result)
        except (TypeError, ValueError, RuntimeError) as error:
            got = f"{type(result).__name__} ({error})"
            raise TypeError(distributions.simulator_result(got, shapes)) from error
        if array.dtype.kind not in "biuf":
            got = f"{type(result).__name__} of type {array.dtype}"
            raise TypeError(distributions.simulator_result(got, shapes))
        expected = (shapes[0][0], *self.event_shape) if self.vectorized else self.event_shape
        if array.shape != expected:
            message = distributions.simulator_shape(array.shape, expected, shapes, self.vectorized)
            raise ValueError(message)
        return array


def as_numbers(number: int, arg: Any) -> np.ndarray:
    """
    A number, a list of them or an array of NumPy, as an array.

    :param number: which argument after fn it is, for the error.
    :param arg: what the user gave.
    :raises TypeError: if it holds anything but numbers.
    """
    try:
        array = np.asarray(arg)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(distributions.simulator_arg(number, arg)) from error
    if array.dtype.kind not in "biufc":
        raise TypeError(distributions.simulator_arg(number, arg))
    return array


@dataclass(frozen=True)
class Typed:
    """
    A black box whose results have one type; equal to another one if both are.

    :param box: the black box.
    :param dtype: the floating type, one of NumPy's.
    """

    box: BlackBox
    dtype: Any

    def __call__(self, seeds: Any, *arrays: Any) -> np.ndarray:
        """Results of shape batch + event."""
        return self.box.call(self.dtype, seeds, *arrays)
