# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel that is a mixture of one kernel at several scales."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution

from pyro_spread.noise.base import SpreadNoise, like, widened
from spread_core.noise.levels import MultiLevel


class LevelMixture(TorchDistribution):
    """
    A mixture of distributions of one form, one draw of whose component serves the whole event.

    :param weights: of the components: L numbers, or an array of shape (L,) or batch + (L,).
    :param components: L distributions of the same batch and event shape.
    :param around: None, or x, the levels, and the noise around zero at level one: if it is known
        that y = x + level * noise, one draw of the noise is enough.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        weights: tuple[float, ...] | torch.Tensor,
        components: Sequence[Any],
        around: tuple[torch.Tensor, Any, Any] | None = None,
    ) -> None:
        batch_shape = torch.broadcast_shapes(
            components[0].batch_shape, getattr(weights, "shape", (1,))[:-1]
        )
        super().__init__(batch_shape, components[0].event_shape, validate_args=False)
        # Numbers stay numbers: their type is that of the values.
        self._weights, self._components, self._around = weights, list(components), around

    @property
    def support(self) -> Any:
        """That of the components."""
        return self._components[0].support

    @property
    def has_rsample(self) -> bool:
        """Whether draws have a gradient, given their level."""
        return all(part.has_rsample for part in self._components)

    def expand(
        self, batch_shape: torch.Size, _instance: LevelMixture | None = None
    ) -> LevelMixture:
        """The same for a larger batch."""
        batch_shape = torch.Size(batch_shape)
        wide = copy.copy(self)
        wide._batch_shape = batch_shape
        wide._components = [part.expand(batch_shape) for part in self._components]
        if self._around is not None:
            x, levels, noise = self._around
            x = x.expand(batch_shape + self.event_shape)
            wide._around = x, levels, noise.expand(batch_shape)
        return wide

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log density of the mixture, in nats."""
        terms = torch.stack([part.log_prob(value) for part in self._components], -1)
        return (terms + like(self._weights, terms).log()).logsumexp(-1)

    @property
    def mean(self) -> torch.Tensor:
        """Mean of the mixture."""
        return self._averaged([part.mean for part in self._components])

    @property
    def variance(self) -> torch.Tensor:
        """Variance of the mixture."""
        parts = self._components
        squares = self._averaged([part.variance + part.mean**2 for part in parts])
        return squares - self.mean**2

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        """Draws that are reparametrised given their level."""
        return self.draw(sample_shape)[0]

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        """Draws without a gradient."""
        with torch.no_grad():
            return self.draw(sample_shape)[0]

    def draw(
        self, sample_shape: torch.Size | tuple[int, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws, and the numbers of their components, of shape sample + batch."""
        sample_shape = torch.Size(sample_shape)
        shape, ones = sample_shape + self.batch_shape, [1] * len(self.event_shape)
        if self._around is not None:
            x, levels, noise = self._around
            index = self._numbers(shape, x)
            level = like(levels, x)[index].reshape((*shape, *ones))
            return x + level * _draws(noise, sample_shape), index
        drawn = [_draws(part, sample_shape) for part in self._components]
        whole = torch.stack(torch.broadcast_tensors(*drawn))
        index = self._numbers(shape, whole)
        at = index.reshape((1, *shape, *ones)).expand(1, *shape, *self.event_shape)
        return whole.expand(-1, *at.shape[1:]).gather(0, at)[0], index

    def _numbers(self, shape: torch.Size, x: torch.Tensor) -> torch.Tensor:
        """Numbers of components, drawn by the inverse of their distribution function."""
        below = like(self._weights, x).cumsum(-1)[..., :-1]
        uniform = torch.rand(shape, dtype=x.dtype, device=x.device)
        return (uniform.unsqueeze(-1) >= below).sum(-1)

    def _averaged(self, values: list[torch.Tensor]) -> torch.Tensor:
        whole = torch.stack(values, -1)
        weights = like(self._weights, whole)
        weights = weights.reshape(*weights.shape[:-1], *[1] * len(self.event_shape), -1)
        return (whole * weights).sum(-1)


def _draws(fn: Any, sample_shape: torch.Size) -> torch.Tensor:
    draws: torch.Tensor = (fn.rsample if fn.has_rsample else fn.sample)(sample_shape)
    return draws


@dataclass(frozen=True, eq=False)
class MultiLevelNoise(MultiLevel, SpreadNoise):
    r"""
    Spread noise at several levels: every datum gets one level, and the kernel at that scale.

        >>> import torch
        >>> from pyro_spread import GaussianNoise
        >>> noise = MultiLevelNoise(GaussianNoise(1.0), [0.1, 0.3, 1.0])
        >>> noise(torch.zeros(5, 2), event_dim=1).batch_shape
        torch.Size([5])
        >>> MultiLevelNoise(GaussianNoise(1.0), [3.0, 4.0])(torch.zeros(())).variance
        tensor(12.5000)
    """

    kernel: SpreadNoise
    levels: Any  # numbers, or an array of shape (L,)
    weights: Any = None

    def _conditional(
        self, x: torch.Tensor, event_dim: int, validate_args: bool | None = None
    ) -> LevelMixture:
        def around(kernel: SpreadNoise, x: torch.Tensor) -> TorchDistribution:
            return kernel._conditional(x, event_dim, validate_args)

        parts = [around(self._at_level(number), x) for number in range(len(self.levels))]
        standard = x, self.levels, around(self.kernel, torch.zeros_like(x))
        return LevelMixture(self.weights, parts, standard)

    def _spread(self, fn: Any, extra: int) -> TorchDistribution:
        if isinstance(fn, self._backend.delta):
            return self._spread_delta(fn, extra)
        parts = [self._at_level(number)._spread(fn, extra) for number in range(len(self.levels))]
        return LevelMixture(self.weights, parts)

    def draw_told(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        One draw of y given x, and the number of the level of every datum.

        :param x: values of the site, of shape batch + event.
        """
        self._check_drawn(x.shape)
        self.check_value(x)
        x = widened(x)
        return self._conditional(x, self._coupled_dims_of(x), validate_args=False).draw()
