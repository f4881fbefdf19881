# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The entropy of noisy data, which learned noise needs and a bound leaves out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from numpyro_spread.infer._datum import frames_of
from numpyro_spread.infer._two_sides import mask_at
from numpyro_spread.noise import SpreadNoise
from numpyro_spread.noise.base import is_concrete, where_valid
from spread_core.messages import learned
from spread_core.noise import mixture


class _WithEntropy(Distribution):
    """
    A distribution with a term in its log density at what is observed.

    :param fn: the distribution.
    :param term: of a shape that broadcasts to the batch shape.
    """

    def __init__(self, fn: Distribution, term: jax.Array) -> None:
        self.fn, self._term = fn, term
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of ``fn``."""
        return self.fn.support

    @property
    def has_rsample(self) -> bool:
        """As of ``fn``."""
        return bool(self.fn.has_rsample)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draws of ``fn``."""
        return self.fn.sample(key, sample_shape)

    def log_prob(self, value: Any, intermediates: list[Any] | None = None) -> jax.Array:
        """The log density at the value that is observed."""
        return self.fn.log_prob(value) + self._term


def with_entropy(
    site: str, msg: Any, kernel: SpreadNoise, handed: jax.Array, clean: jax.Array
) -> Distribution:
    r"""
    The distribution of a site, whose log density has a term of value 0: its gradient is that of
    minus :math:`\log\tilde p(y)`, by the mixture of the mini-batch.

    Only the noise depends on it, of whose gradient the sign is turned.

    :param site: name of the site.
    :param msg: the site.
    :param kernel: that makes its noise.
    :param handed: what the plates take of the noisy values.
    :param clean: the same of the clean values.
    :raises NotImplementedError: if the mixture is not known.
    """
    fn, value = msg["fn"], jnp.asarray(msg["value"])
    if mask_at(site, msg, jnp.shape(value)) is not None:
        raise NotImplementedError(learned.mixture_of_masked(site))
    event_dim, frames = fn.event_dim, frames_of(msg)
    dim = mixture.check_batch(site, kernel, value.shape, event_dim, frames, msg["scale"])
    if handed.size != value.size:
        raise NotImplementedError(learned.mixture_moved(site))
    is_same = (handed.reshape(value.shape) == value).all()
    if is_concrete(is_same) and not np.asarray(is_same):
        raise NotImplementedError(learned.mixture_moved(site))

    def log_p(y: jax.Array, x: jax.Array) -> jax.Array:
        return mixture.log_mixture(kernel, y, x, event_dim, dim)

    taken = value, clean.reshape(value.shape)
    function, others = jax.closure_convert(log_p, *taken)
    return _WithEntropy(fn, where_valid(-_only_gradient(function, *taken, *others), is_same))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _only_gradient(function: Callable[..., jax.Array], *args: jax.Array) -> jax.Array:
    """Zeros, with the gradient of a function, which is not computed unless that is."""
    return jnp.zeros_like(jax.eval_shape(function, *args))


@_only_gradient.defjvp
def _slope(function: Any, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    value, slope = jax.jvp(function, primals, tangents)
    return jnp.zeros_like(value), slope


def check_arguments(
    site: str, value: jax.Array, handed: jax.Array, arguments: tuple[Any, Any]
) -> None:
    """
    Refuse arguments that go with the data one by one, and are not the data.

    :param site: name of the site.
    :param value: what it observes.
    :param handed: the noisy data, as the model was given them.
    :param arguments: positional and keyword arguments of the model.
    :raises NotImplementedError: naming the shape.
    """
    mixture.check_leaves(site, jnp.shape(value), handed, arguments, jax.tree.leaves)
