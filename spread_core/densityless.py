# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Distributions without a usable density: what is the same in both backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
