# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Noise kernel for class labels."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from spread_core.math._arrays import array_type, is_floating
from spread_core.messages import noise
from spread_core.noise.base import Kernel

# Columns summed in float32 miss 1 by rounding; singular values below this share of the largest
# cannot be distinguished from 0 in the single precision that most models run in.
SUM_TOLERANCE = 1e-5
SINGULAR_TOLERANCE = 1e-6


class Channel(Kernel[Any, Any, Any]):
    r"""
    Discrete spread noise: a channel :math:`P_{ij} = p(y=i \mid x=j)`.

    The spread of a distribution p over classes is P p, so an invertible P keeps the divergence zero
    only at equality [1, section 2.2]. ``spread`` is exact for ``Delta`` and ``Categorical``.

    **References**

    [1] `Spread Divergence`, Zhang, Hayes, Bird, Habib, Barber, https://arxiv.org/abs/1811.08968

    :param matrix: array of shape (K, K) whose columns sum to 1.
    :raises ValueError: if the matrix is not square, not column-stochastic, or singular.
    """

    matrix: Any

    def __post_init__(self) -> None:
        backend = self._backend
        matrix = backend.as_array(backend.as_parameter(self.matrix))
        object.__setattr__(self, "matrix", matrix)
        shape = tuple(matrix.shape)
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
            raise ValueError(noise.channel_shape(shape))
        known = backend.known(matrix)
        if known is not None:
            _check(known.astype(float), sum_tolerance(matrix))

    @classmethod
    def symmetric(cls, num_classes: int, flip: Any) -> Any:
        r"""
        The channel :math:`(1-e) I + (e/K)\, 1 1^\top`: with probability e = ``flip`` the label is
        drawn afresh, uniformly over all K classes (its own included).

        :param num_classes: number of classes K, at least 2.
        :param flip: probability e of a fresh draw, in [0, 1).
        :raises ValueError: if num_classes < 2 or flip is outside [0, 1).
        """
        if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
            raise ValueError(noise.bad_num_classes(num_classes))
        if not isinstance(flip, numbers.Real) and not array_type(flip):
            raise ValueError(noise.bad_flip(flip))
        known = cls._backend.known(flip)
        if known is not None and (known.ndim or not 0 <= known < 1):
            raise ValueError(noise.bad_flip(flip))
        identity = cls._backend.identity(num_classes)
        return cls(flip / num_classes + (1 - flip) * identity)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return int(self.matrix.shape[0])

    def check_value(self, x: Any) -> None:
        """
        Refuse values that are not class labels.

        :raises TypeError: if x is not of an integer type.
        :raises ValueError: if a label is outside 0..K-1.
        """
        dtype, kind = self._backend.type_of(x)
        if kind != "integer":
            raise TypeError(noise.float_under_channel(dtype))
        known = self._backend.range_of(x)
        if known is not None and (known[0] < 0 or known[1] >= self.num_classes):
            raise ValueError(noise.label_out_of_range(self.num_classes, *known))

    def _moves_with_data(self) -> bool:
        return True

    def _check_classes(self, found: int) -> None:
        if found != self.num_classes:
            raise ValueError(noise.other_classes(self.num_classes, found))


def sum_tolerance(matrix: Any) -> float:
    """How far a column that should sum to 1 may be off in the type of the matrix."""
    xp = array_namespace(matrix)
    rounding = float(xp.finfo(matrix.dtype).eps) if is_floating(xp, matrix.dtype) else 0.0
    return max(SUM_TOLERANCE, rounding)


def _check(matrix: Any, tolerance: float) -> None:
    if not np.isfinite(matrix).all():
        raise ValueError(noise.channel_not_stochastic("it contains NaN or inf"))
    if (matrix < 0).any():
        raise ValueError(noise.channel_not_stochastic("it has a negative entry"))
    sums = matrix.sum(0)
    if (abs(sums - 1) > tolerance).any():
        reason = f"its columns sum to {sums.round(6).tolist()}"
        raise ValueError(noise.channel_not_stochastic(reason))
    singular_values = np.linalg.svd(matrix, compute_uv=False)
    if singular_values[-1] <= SINGULAR_TOLERANCE * singular_values[0]:
        raise ValueError(noise.channel_singular(f"{singular_values[-1]:.1e}"))
