# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Distributions without a usable density: what is the same in both backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

from spread_core.black_box import BlackBox
from spread_core.messages import distributions
from spread_core.shared_docs import SharedDocs


class ImplicitShared(SharedDocs):
    """
    The distribution of ``fn(eps)`` for ``eps ~ base_dist``: it can be sampled, it has no density.

    It carries ``(fn, base_dist)`` and never a drawn value, so that ``expand``, ``sample_shape``,
    vectorised particles and ``Predictive`` all draw fresh noise.

    :param fn: callable from noise of shape sample + batch + base event shape to values of shape
        sample + batch + ``event_shape``; a module or a function, differentiable in its parameters.
    :param base_dist: distribution of the noise; its batch shape is the batch shape here.
    :param event_shape: shape of one value, a tuple.
    :raises TypeError: if fn is not callable, base_dist no distribution or event_shape no tuple.
    """

    base_dist: Any

    @staticmethod
    def _check(fn: Any, base_dist: Any, event_shape: Any, base: type, package: str) -> None:
        if not callable(fn):
            raise TypeError(distributions.implicit_fn(fn))
        if not isinstance(base_dist, base):
            raise TypeError(distributions.implicit_base(base_dist, package))
        distributions.check_event_shape(event_shape)

    @property
    def has_rsample(self) -> bool:
        """Whether draws are differentiable in the parameters of fn and ``base_dist``."""
        return bool(self.base_dist.has_rsample)

    @staticmethod
    def _check_draws(shape: Sequence[int], expected: Sequence[int]) -> None:
        if tuple(shape) != tuple(expected):
            raise ValueError(distributions.implicit_output_shape(shape, expected))


class DeterministicGeneratorShared(SharedDocs):
    r"""
    The likelihood :math:`p(x \mid z) = \delta(x - g(z))` of a deterministic generator.

    A ``Delta`` that refuses to be scored: where a stock ``Delta`` silently gives -inf, ``log_prob``
    is an error that names the losses for such models. Under ``SpreadELBO`` the two are the same.

    :param value: the output g(z), of shape batch + event.
    :param event_dim: number of event dimensions of ``value``.
    """


class SimulatorShared(SharedDocs):
    r"""
    The distribution of ``fn(rng, *arrays)``: a black box in NumPy, which can be sampled only.

    For simulators that are no part of the program: ODE solvers, compiled codes, other programs.
    The batch is flattened: ``fn`` gets a ``numpy.random.Generator`` and arrays of shape
    ``(n, *own)``, where n is the number of runs and ``own`` the dims of an argument that belong to
    one run, and returns an array of shape ``(n, *event_shape)``. Every element of a batch, plate or
    sample is a run of its own, with fresh noise as far as ``fn`` takes it from ``rng``.

    Arguments broadcast as the parameters of any distribution do, without the dims that belong to
    one run, and their common shape is the batch shape. A vector, such as a site with
    ``.to_event(1)``, is one argument with ``arg_event_dims=1``.

    It has no density and passes on no gradient: losses that would learn through its draws refuse
    it. :class:`JointContrastELBO` trains guides for such models. A run that failed returns NaN,
    which losses report, or leave out if told so. Errors of ``fn`` are passed on.

    :param fn: callable from a generator and NumPy arrays to an array of real numbers. Arrays are
        copies, which it may write to, in the types of the arguments; 16 bits are widened to 32.
    :param args: arguments of ``fn``: arrays or numbers, at least one.
    :param event_shape: shape of the result of one run, a tuple.
    :param vectorized: whether ``fn`` takes all runs at once; else it is called for each, with
        arguments of their own shapes, and returns ``event_shape``. Then every run has its own seed
        and its result does not depend on those beside it. With ``vectorized`` one generator serves
        all runs of a call: a seed repeats the call as a whole.
    :param arg_event_dims: how many rightmost dims of an argument belong to one run: a number for
        all arguments, or one for each.
    :raises TypeError: if fn is not callable, an argument is no array of numbers, or a keyword has
        the wrong type; when drawn, if fn does not return real numbers.
    :raises ValueError: if arguments do not broadcast; when drawn, if fn returns another shape.
    """

    _box: BlackBox
    args: tuple[Any, ...]

    @staticmethod
    def _make_box(
        fn: Any, args: Sequence[Any], event_shape: Any, vectorized: Any, arg_event_dims: Any
    ) -> BlackBox:
        """The checked function; ``args`` are not looked at, but for their number."""
        if not callable(fn):
            raise TypeError(distributions.simulator_fn(fn))
        if not args:
            raise TypeError(distributions.simulator_needs_args())
        distributions.check_event_shape(event_shape, "Simulator")
        if not isinstance(vectorized, bool):
            raise TypeError(distributions.simulator_vectorized(vectorized))
        dims = arg_event_dims
        if isinstance(dims, Integral):
            dims = (dims,) * len(args)
        good = isinstance(dims, Sequence) and len(dims) == len(args)
        if not good or not all(isinstance(dim, Integral) and int(dim) >= 0 for dim in dims):
            raise TypeError(distributions.simulator_event_dims(arg_event_dims, len(args)))
        sizes = tuple(int(size) for size in event_shape)
        return BlackBox(fn, sizes, tuple(int(dim) for dim in dims), vectorized)

    @property
    def fn(self) -> Callable[..., Any]:
        """The black box."""
        return self._box.fn
