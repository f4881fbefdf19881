# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Gaussian noise kernel with a few correlated directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from spread_core.math._arrays import cast
from spread_core.messages import noise
from spread_core.noise.base import Kernel


class LowRankGaussian(Kernel[Any, Any, Any]):
    r"""
    Gaussian spread noise with covariance :math:`s^2 I + F F^\top`, F of shape D x R.

    Densities use the matrix determinant lemma and the Woodbury identity, so that the cost is
    :math:`O(D R^2)` and no D x D matrix is ever formed. An event of several dimensions (an image)
    is flattened to its D elements.

    The exact spread KL never gains from a factor that is learned without a constraint: its optimum
    is F = 0. ``learned`` keeps a constraint, and has the entropy term.

    :param scale: isotropic standard deviation s: a number, or an array of shape () or (D,).
    :param factor: array of shape (D, R), in units of x.
    :raises ValueError: if scale is not positive and finite or factor is not a finite matrix.
    """

    scale: Any
    factor: Any

    coupled_dims = 1

    def __post_init__(self) -> None:
        backend = self._backend
        if not backend.is_positive(self.scale):
            raise ValueError(noise.bad_positive("LowRankGaussianNoise", "scale", self.scale))
        object.__setattr__(self, "scale", backend.as_positive(self.scale))
        object.__setattr__(self, "factor", backend.as_array(backend.as_parameter(self.factor)))
        shape, scale_shape = tuple(self.factor.shape), tuple(getattr(self.scale, "shape", ()))
        if len(shape) != 2 or 0 in shape:
            raise ValueError(noise.factor_shape(shape))
        factor = backend.known(self.factor)
        if factor is not None and not np.isfinite(factor).all():
            raise ValueError(noise.bad_factor())
        if scale_shape not in ((), (1,), shape[:1]):
            raise ValueError(noise.low_rank_scale_shape(scale_shape, shape))

    def characteristic_function(self, omega: Any) -> Any:
        r"""
        :math:`\exp(-\omega^\top (s^2 I + F F^\top)\, \omega / 2)`.

        :param omega: frequencies of shape (..., D).
        :return: array of shape (...).
        """
        omega = self._backend.as_array(omega)
        isotropic = ((self.scale * omega) ** 2).sum(-1)
        correlated = ((omega @ cast(self.factor, omega)) ** 2).sum(-1)
        return array_namespace(omega).exp(-0.5 * (isotropic + correlated))

    def _is_stationary(self) -> bool:
        return True

    def _scaled(self, factor: Any) -> Any:
        return self._changed(scale=self.scale * factor, factor=self.factor * factor)

    def _coupled_dims_of(self, x: Any) -> int:
        for event_dim in range(1, x.ndim + 1):
            if math.prod(x.shape[-event_dim:]) == self.factor.shape[0]:
                return event_dim
        raise ValueError(noise.factor_misfit(self.factor.shape, x.shape[-1:]))

    def _check_fit(self, event_shape: Sequence[int]) -> None:
        if math.prod(event_shape) != self.factor.shape[0]:
            raise ValueError(noise.factor_misfit(self.factor.shape, event_shape))

    def _drawn_alike(self, drawn: Sequence[int], scored: Sequence[int], event_dim: int) -> bool:
        return True  # events of every form are flattened
