# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Private names of NumPyro and JAX that this package uses: an upgrade of either opens this file."""

from __future__ import annotations

import copy
from typing import Any

import jax
from numpyro.distributions import Distribution, transforms
from numpyro.optim import _NumPyroOptim as NumPyroOptim
from numpyro.primitives import _PYRO_STACK, plate

__all__ = [
    "NumPyroOptim",
    "active_handlers",
    "indices_of",
    "inverted",
    "mask_of",
    "with_batch_shape",
]


def active_handlers(*but: type) -> list[Any]:
    """
    The handlers that are in effect, the outermost first.

    :param but: classes that are not wanted.
    """
    return [handler for handler in _PYRO_STACK if not isinstance(handler, but)]


def mask_of(fn: Any) -> Any:
    """The mask of a ``MaskedDistribution``: an array or a bool."""
    return fn._mask


def inverted(transform: Any) -> Any:
    """The transform whose inverse this one is; None if it is not an inverse."""
    return transform._inv if isinstance(transform, transforms._InverseTransform) else None


def indices_of(plate: plate) -> jax.Array:
    """Which of its elements a plate has taken."""
    indices: jax.Array = plate._indices
    return indices


def with_batch_shape(fn: Distribution, batch_shape: tuple[int, ...]) -> Distribution:
    """A copy that says another batch shape; nothing is broadcast."""
    result = copy.copy(fn)
    result._batch_shape = batch_shape
    return result
