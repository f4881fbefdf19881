# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The distribution of one latent site under an amortised guide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import sum_rightmost
from torch.distributions import biject_to, constraints

from spread_core.amortized.density import Conditional
from spread_core.amortized.layout import Variable


class ConditionalSite(TorchDistribution):
    """
    The conditional distribution of a site, with the site's support and shape.

    Where there are dims of particles, values have size 1 at the dims of plates that the site is not
    in, as a plate around everything makes it.

    :param conditional: that of the site's numbers.
    :param support: of the site.
    :param shape: sizes of lead and plates' dims.
    :param depth: how many of them are plates'.
    :param value: one value of the site, whose dtype and event shape draws have.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        conditional: Conditional,
        support: Any,
        shape: Sequence[int],
        depth: int,
        value: torch.Tensor,
    ) -> None:
        self.conditional, self._support, self._value = conditional, support, value
        self._shape, self._lead = tuple(shape), len(shape) - depth
        lead = self._lead
        variable = conditional.variable
        batch = list(variable.batch_shape)
        for dim in variable.plates.values():
            batch[dim] = self._shape[dim]
        gap = len(self._shape) - lead - len(batch) if lead else 0
        event_shape = value.shape[len(batch) :]
        self.has_rsample = conditional.has_rsample
        super().__init__(
            torch.Size((*self._shape[:lead], *[1] * gap, *batch)), event_shape, validate_args=False
        )

    @property
    def support(self) -> Any:
        """That of the model's site."""
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> ConditionalSite:
        """The same for a larger batch, with draws of its own for each element."""
        depth = len(self._shape) - self._lead
        lead = tuple(batch_shape)[: max(len(batch_shape) - depth, 0)]
        plates = list(self._shape[self._lead :])
        for dim in self.conditional.variable.plates.values():
            plates[dim] = batch_shape[dim]
        shape = (*lead, *plates)
        return ConditionalSite(self.conditional, self._support, shape, depth, self._value)

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draws of shape sample + batch + event, with gradients where the density's draws have."""
        like = self.conditional.inputs

        def uniform(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.rand(shape, dtype=like.dtype, device=like.device)

        vectors = self.conditional.draw(uniform, (*sample_shape, *self._shape))
        value = self.constrained(vectors, len(sample_shape) + self._lead)
        return value.reshape((*sample_shape, *self.batch_shape, *self.event_shape))

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draws of shape sample + batch + event."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def constrained(self, vectors: torch.Tensor, lead: int) -> torch.Tensor:
        """
        Unconstrained vectors as values of the site.

        :param vectors: of shape lead + plates + (size,).
        :param lead: number of leading dims.
        """
        variable, dtype = self.conditional.variable, self._value.dtype
        if variable.num_classes:
            return (variable.split(vectors, lead).round() + variable.first).to(dtype)
        vectors = vectors.to(dtype)
        if variable.low is None:
            value = biject_to(self._support)(variable.split(vectors, lead))
            return off_the_end(self._support, within(self._support, value))
        # Rounding must not carry a draw to an end of the interval, where the prior may be 0.
        low, high = torch.as_tensor(variable.ends(), dtype=dtype, device=vectors.device)
        ends = torch.nextafter(low, high), torch.nextafter(high, low)
        return variable.split(torch.clamp(vectors, *ends), lead)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density in nats, of shape sample + batch."""
        variable = self.conditional.variable
        batch = value.shape[: value.dim() - self.event_dim]
        depth = len(self._shape) - self._lead
        value, lead = close_gap(variable, value, self.event_dim, depth)
        raw = unconstrained(variable, self._support, value)
        vectors = variable.join(raw.to(self.conditional.loc.dtype), depth, lead)
        shape = torch.broadcast_shapes(vectors.shape[:-1], self._shape)
        each = self.conditional.log_prob(vectors.expand((*shape, -1)))
        found = variable.split(each, len(shape) - depth)
        found = sum_rightmost(found, len(variable.event_shape))
        if not variable.num_classes and variable.low is None:
            log_det = biject_to(self._support).log_abs_det_jacobian(raw, value)
            found = found - sum_rightmost(log_det, log_det.dim() - value.dim() + self.event_dim)
            ends = interval_of(self._support)
            if ends is not None:
                outside = (value < ends[0]) | (value > ends[1])
                found = found.masked_fill(sum_rightmost(outside, self.event_dim) > 0, -math.inf)
        return found.reshape(torch.broadcast_shapes(batch, self.batch_shape))


def close_gap(
    variable: Variable, value: torch.Tensor, event_dim: int, depth: int
) -> tuple[torch.Tensor, int]:
    """
    A value without the dims of size 1 that come from plates it is not in, and its leading dims.

    :param variable: the site.
    :param value: of shape lead + gap + batch + event.
    :param event_dim: of the value.
    :param depth: number of batch dims that are not lead.
    """
    batch = len(variable.batch_shape)
    lead = value.dim() - event_dim - batch
    shape, first = tuple(value.shape), max(lead - (depth - batch), 0)
    if all(size == 1 for size in shape[first:lead]):
        return value.reshape((*shape[:first], *shape[lead:])), first
    return value, lead


def open_gap(variable: Variable, value: torch.Tensor, lead: int, depth: int) -> torch.Tensor:
    """
    The inverse of :func:`close_gap`.

    :param variable: the site.
    :param value: of shape lead + batch + event.
    :param lead: number of leading dims.
    :param depth: number of batch dims that are not lead.
    """
    gap = depth - len(variable.batch_shape) if lead else 0
    return value.reshape((*value.shape[:lead], *[1] * gap, *value.shape[lead:]))


def unconstrained(variable: Variable, support: Any, value: torch.Tensor) -> torch.Tensor:
    """A site's value as the conditionals take it: classes are counted from 0."""
    if variable.num_classes:
        return value.to(torch.get_default_dtype()) - variable.first
    if variable.low is not None:
        return value
    return biject_to(support).inv(within(support, value))


def within(support: Any, value: torch.Tensor) -> torch.Tensor:
    """
    Values, moved off the ends of an interval, at which what is unconstrained is infinite.

    :param support: of the site.
    :param value: its values.
    """
    ends = interval_of(support)
    if ends is None:
        return value
    low, high = (torch.as_tensor(end, dtype=value.dtype, device=value.device) for end in ends)
    step = torch.finfo(value.dtype).eps * (high - low)
    least = torch.maximum(low + step, torch.nextafter(low, high))
    return torch.clamp(value, least, torch.minimum(high - step, torch.nextafter(high, low)))


def off_the_end(support: Any, value: torch.Tensor) -> torch.Tensor:
    """
    Draws on a half-line, moved off its end, which rounding reaches: what is unconstrained is
    infinite there.

    :param support: of the site.
    :param value: its values.
    """
    support, number = _of_numbers(support), torch.finfo(value.dtype)
    if isinstance(support, constraints.greater_than | constraints.greater_than_eq):
        low = torch.as_tensor(support.lower_bound, dtype=value.dtype, device=value.device)
        above = torch.nextafter(low, torch.full_like(low, math.inf))
        return value.clamp(torch.maximum(above, low + number.tiny), low.new_tensor(number.max))
    if isinstance(support, constraints.less_than):
        high = torch.as_tensor(support.upper_bound, dtype=value.dtype, device=value.device)
        below = torch.nextafter(high, torch.full_like(high, -math.inf))
        return value.clamp(high.new_tensor(number.min), torch.minimum(below, high - number.tiny))
    return value


def interval_of(support: Any) -> tuple[Any, Any] | None:
    """
    The ends of an interval; None for other supports.

    :param support: of a site.
    """
    support = _of_numbers(support)
    if isinstance(support, constraints.interval | constraints.half_open_interval):
        return support.lower_bound, support.upper_bound
    return None


def _of_numbers(support: Any) -> Any:
    """The support of each number of an event."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support
