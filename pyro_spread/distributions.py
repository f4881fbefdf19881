# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Distributions without a usable density: samplers and deterministic generators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints

from spread_core.densityless import DeterministicGeneratorShared, ImplicitShared
from spread_core.inspection import is_inspected
from spread_core.messages import distributions


class ImplicitDistribution(ImplicitShared, TorchDistribution):
    r"""
    The distribution of ``fn(eps)`` for ``eps ~ base_dist``: it can be sampled, it has no density.

        >>> import torch, pyro.distributions as dist
        >>> base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        >>> d = ImplicitDistribution(lambda eps: eps[..., :2] ** 2, base, event_shape=(2,))
        >>> d.expand([5]).rsample((7,)).shape
        torch.Size([7, 5, 2])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        fn: Callable[[torch.Tensor], torch.Tensor],
        base_dist: TorchDistribution,
        event_shape: tuple[int, ...] | torch.Size,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self._check(fn, base_dist, event_shape, torch.distributions.Distribution, "pyro")
        self.fn = fn
        self.base_dist = base_dist
        super().__init__(
            base_dist.batch_shape, torch.Size(event_shape), validate_args=validate_args
        )

    @constraints.dependent_property
    def support(self) -> Any:
        """All real values; fn may reach only some of them."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def has_rsample_(self, value: bool) -> ImplicitDistribution:
        """
        Return the value, or raise an error.

        :param value: whether draws are to have a gradient.
        :raises NotImplementedError: if they are not as asked: there is no density that could serve.
        """
        if bool(value) != self.has_rsample:
            raise NotImplementedError(distributions.implicit_rsample())
        return self

    def expand(
        self, batch_shape: torch.Size, _instance: ImplicitDistribution | None = None
    ) -> ImplicitDistribution:
        """The distribution over ``batch_shape`` independent draws: it is the noise that expands."""
        return ImplicitDistribution(self.fn, self.base_dist.expand(batch_shape), self.event_shape)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        """
        Reparametrised draws of shape sample + batch + event.

        :raises ValueError: if ``fn`` returns another shape.
        """
        draw = self.base_dist.rsample if self.base_dist.has_rsample else self.base_dist.sample
        sample_shape = torch.Size(sample_shape)
        value = self.fn(draw(sample_shape))
        expected = self._extended_shape(sample_shape)
        self._check_draws(value.shape, expected)
        return value

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """
        Not available. For ``pyro.infer.inspect`` the result shows what a density would depend on.

        :raises NotImplementedError: always else, naming the losses that need no density.
        """
        if is_inspected("pyro.infer.inspect"):
            with torch.random.fork_rng(devices=[]):
                draw = self.sample()
            return _depends_on(value, draw, len(self.event_shape))
        raise NotImplementedError(distributions.implicit_has_no_density())


class DeterministicGenerator(DeterministicGeneratorShared, dist.Delta):
    r"""
    The likelihood :math:`p(x \mid z) = \delta(x - g(z))` of a deterministic generator.

        >>> import torch
        >>> DeterministicGenerator(torch.zeros(5, 2), event_dim=1).batch_shape
        torch.Size([5])
    """

    def __init__(
        self, value: torch.Tensor, event_dim: int = 0, *, validate_args: bool | None = None
    ) -> None:
        super().__init__(value, event_dim=event_dim, validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size, _instance: DeterministicGenerator | None = None
    ) -> DeterministicGenerator:
        """The generator over ``batch_shape``, each element with the same output."""
        value = self.v.expand(torch.Size(batch_shape) + self.event_shape)
        return DeterministicGenerator(value, event_dim=self.event_dim)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """
        Raises an error. For ``pyro.infer.inspect`` the result shows what a density would depend on.

        :raises NotImplementedError: always else, naming the losses that can train this model.
        """
        if is_inspected("pyro.infer.inspect"):
            return _depends_on(x, self.v, self.event_dim)
        raise NotImplementedError(distributions.generator_has_no_density())


def _depends_on(value: torch.Tensor, other: torch.Tensor, event_dim: int) -> torch.Tensor:
    """A number for every element of a batch that depends on what a density would depend on."""
    both = value - other
    return both.reshape(*both.shape[: both.dim() - event_dim], -1).sum(-1) if event_dim else both
