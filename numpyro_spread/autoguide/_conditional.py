# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The distribution of one latent site under an amortised guide."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import random
from numpyro.distributions import Distribution, biject_to, constraints
from numpyro.distributions.util import sum_rightmost

from numpyro_spread.autoguide._compiled import compiled
from spread_core.amortized.density import Conditional
from spread_core.amortized.layout import Variable


class ConditionalSite(Distribution):
    """
    The conditional distribution of a site, with the site's support and shape.

    :param conditional: that of the site's numbers.
    :param support: of the site.
    :param plates: sizes of lead and plates' dims.
    :param event_shape: of the site's values.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        conditional: Conditional,
        support: Any,
        plates: tuple[int, ...],
        lead: int,
        event_shape: tuple[int, ...],
    ) -> None:
        self.conditional, self._support, self._plates, self._lead = (
            conditional,
            support,
            plates,
            lead,
        )
        variable = conditional.variable
        batch = list(variable.batch_shape)
        for dim in variable.plates.values():
            batch[dim] = plates[dim]
        super().__init__((*plates[:lead], *batch), event_shape, validate_args=False)

    @property
    def shell(self) -> tuple[Any, ...]:
        """What tells the site from others, beside its conditional."""
        return id(self._support), self._plates, self._lead, self.event_shape

    @property
    def support(self) -> constraints.Constraint:
        """That of the model's site."""
        return self._support

    @property
    def has_rsample(self) -> bool:
        """Whether draws are differentiable."""
        return self.conditional.has_rsample

    @property
    def is_discrete(self) -> bool:
        """Whether the site is discrete."""
        return bool(self.conditional.variable.num_classes)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws of shape sample + batch + event."""
        assert key is not None
        return compiled(ConditionalSite._draw, self, key, tuple(sample_shape))

    def _draw(self, key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
        def uniform(shape: tuple[int, ...]) -> jax.Array:
            return random.uniform(key, shape)

        shape = (*sample_shape, *self._plates)
        vectors = self.conditional.draw(uniform, shape, random.fold_in(key, 1))
        return self.constrained(vectors, len(sample_shape) + self._lead)

    def constrained(self, vectors: jax.Array, lead: int) -> jax.Array:
        """Unconstrained vectors as values of the site."""
        variable = self.conditional.variable
        if variable.low is not None:
            # Rounding must not carry a draw to an end of the interval, where the prior may be 0.
            low, high = jnp.asarray(variable.ends(), vectors.dtype)
            vectors = jnp.clip(vectors, jnp.nextafter(low, high), jnp.nextafter(high, low))
        value = variable.split(vectors, lead)
        if variable.num_classes:
            return (jnp.round(value) + variable.first).astype(jnp.int32)
        if variable.low is not None:
            return value
        return off_the_end(self._support, within(self._support, biject_to(self._support)(value)))

    def log_prob(self, value: Any, intermediates: list[Any] | None = None) -> jax.Array:
        """Log density in nats, of shape sample + batch."""
        return compiled(ConditionalSite._log_prob, self, jnp.asarray(value))

    def _log_prob(self, value: jax.Array) -> jax.Array:
        variable = self.conditional.variable
        ndim = value.ndim - self.event_dim - len(variable.batch_shape)
        raw = unconstrained(variable, self._support, value)
        depth = len(self._plates) - self._lead
        each = self.conditional.log_prob(variable.join(raw, depth, ndim))
        found = sum_rightmost(variable.split(each, ndim), len(variable.event_shape))
        if variable.num_classes or variable.low is not None:
            return found
        transform = biject_to(self._support)
        log_det = transform.log_abs_det_jacobian(raw, value)
        surplus = jnp.ndim(log_det) - (value.ndim - self.event_dim)
        found = found - sum_rightmost(log_det, surplus)
        ends = interval_of(self._support)
        if ends is None:
            return found
        outside = sum_rightmost((value < ends[0]) | (value > ends[1]), self.event_dim) > 0
        return jnp.where(outside, -jnp.inf, found)


def unconstrained(variable: Variable, support: Any, value: jax.Array) -> jax.Array:
    """A site's value as the conditionals take it: classes are counted from 0."""
    if variable.num_classes:
        return jnp.asarray(value, jnp.result_type(float)) - variable.first
    if variable.low is not None:
        return jnp.asarray(value)
    return biject_to(support).inv(within(support, jnp.asarray(value)))


def within(support: Any, value: jax.Array) -> jax.Array:
    """
    Values, moved off the ends of an interval, at which what is unconstrained is infinite.

    :param support: of the site.
    :param value: its values.
    """
    ends = interval_of(support)
    if ends is None:
        return value
    low, high = (jnp.asarray(end, value.dtype) for end in ends)
    step = jnp.finfo(value.dtype).eps * (high - low)
    least = jnp.maximum(low + step, jnp.nextafter(low, high))
    return jnp.clip(value, least, jnp.minimum(high - step, jnp.nextafter(high, low)))


def off_the_end(support: Any, value: jax.Array) -> jax.Array:
    """
    Draws on a half-line, moved off its end, which rounding reaches: what is unconstrained is
    infinite there.

    :param support: of the site.
    :param value: its values.
    """
    support, number = _of_numbers(support), jnp.finfo(value.dtype)
    if isinstance(support, constraints.greater_than):
        low = jnp.asarray(support.lower_bound, value.dtype)
        least = jnp.maximum(jnp.nextafter(low, jnp.inf), low + number.tiny)
        return jnp.clip(value, least, number.max)
    if isinstance(support, constraints.less_than):
        high = jnp.asarray(support.upper_bound, value.dtype)
        most = jnp.minimum(jnp.nextafter(high, -jnp.inf), high - number.tiny)
        return jnp.clip(value, number.min, most)
    return value


def interval_of(support: Any) -> tuple[Any, Any] | None:
    """
    The ends of an interval; None for other supports.

    :param support: of a site.
    """
    support = _of_numbers(support)
    if isinstance(support, constraints.interval):
        return support.lower_bound, support.upper_bound
    return None


def _of_numbers(support: Any) -> Any:
    """The support of each number of an event."""
    while hasattr(support, "base_constraint"):  # of to_event
        support = support.base_constraint
    return support
