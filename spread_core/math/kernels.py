# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Positive definite kernels k(x, y) of the two-sample losses, as pure functions of two samples.

They take tensors of PyTorch, arrays of JAX (or of NumPy beside them), or arrays of NumPy alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace

from spread_core.math._arrays import Array, array_type, cast, is_floating, leading, numbers
from spread_core.math.distances import absolute_distances, check_pair, squared_distances
from spread_core.messages import noise, samples

__all__ = [
    "GaussianKernel",
    "LaplaceKernel",
    "RationalQuadraticKernel",
]

#: A number, or several for a mixture of kernels.
Numbers: TypeAlias = float | Sequence[float] | Array


def _as_parameter(value: Any) -> Any:
    """A Python float, whose type follows the samples, or an array of a floating type."""
    if isinstance(value, int | float | np.generic):
        return float(value)
    xp = array_namespace(value)
    return value if is_floating(xp, value.dtype) else xp.astype(value, xp.asarray(1.0).dtype)


def _where_valid(value: Array, valid: Array) -> Array:
    """What only shows under jit to be wrong is NaN there."""
    return array_namespace(value).where(valid, value, math.nan)


def _is_positive(value: Any) -> bool:
    """Whether it is a number or an array, positive and finite; True where that is unknown."""
    if not isinstance(value, int | float | np.generic) and not array_type(value):
        return False
    if _is_huge(value):
        return False
    known = numbers(value)
    return known is None or bool(np.all((known > 0) & np.isfinite(known)))


def _is_huge(value: Any) -> bool:
    """Whether it is an integer that no float can hold."""
    return isinstance(value, int) and abs(value) > sys.float_info.max


def _positive(value: Any) -> Any:
    parameter = _as_parameter(value)
    if numbers(parameter) is not None:
        return parameter
    xp = array_namespace(parameter)
    return _where_valid(parameter, (parameter > 0) & xp.isfinite(parameter))


def _as_numbers(kernel: str, name: str, value: Any) -> Any:
    """A float, a tuple of numbers or an array of at most one dim, each positive and finite."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    several = isinstance(value, list | tuple)
    values = tuple(value) if several else (value,)
    if not all(_is_positive(v) and not (several and np.ndim(v)) for v in values):
        raise ValueError(noise.bad_positive(kernel, name, value))
    shape = (len(value),) if several else np.shape(value)
    if len(shape) > 1 or 0 in shape:
        raise ValueError(samples.mixture_shape(kernel, name, shape))
    return tuple(map(_positive, values)) if several else _positive(value)


def _components(value: Any, x: Array) -> list[Any]:
    """Every number of a mixture: floats as they are, arrays in the type of x."""
    if array_type(value):
        return list(array_namespace(x).reshape(cast(value, x), (-1,)))
    values = value if isinstance(value, tuple) else (value,)
    return [cast(v, x) if array_type(v) else v for v in values]


def _mean(matrices: list[Array]) -> Array:
    return functools.reduce(operator.add, matrices) / len(matrices)


def _count(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else math.prod(np.shape(value))


_CLASSES: list[type] = []
_REGISTERS: dict[str, Callable[[type], None]] = {}


def register_classes(library: str, register: Callable[[type], None]) -> None:
    """
    Call a function once with every class of kernels, those that are defined later included.

    :param library: who needs it; nothing is done if that library has been served.
    :param register: what it needs, as JAX does to take kernels for pytrees.
    """
    if library not in _REGISTERS:
        _REGISTERS[library] = register
        for cls in _CLASSES:
            register(cls)


class Kernel(ABC):
    """
    Base class of the kernels: small immutable objects whose fields are positive numbers, or
    several for a mixture.

    They are pytrees of JAX. Values of tracers, as of a bandwidth that is learned, are not checked.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _CLASSES.append(cls)
        for register in _REGISTERS.values():
            register(cls)

    def __post_init__(self) -> None:
        for name in self._names():
            value = _as_numbers(type(self).__name__, name, getattr(self, name))
            object.__setattr__(self, name, value)

    def __call__(self, x: Array, y: Array) -> Array:
        """
        The matrix of k(x_i, y_j).

        :param x: samples of shape (n, d).
        :param y: samples of shape (m, d).
        :return: matrix of shape (n, m).
        :raises TypeError: if the samples are not arrays of one library and one floating type.
        :raises ValueError: if they are not matrices of the same width.
        """
        values = (getattr(self, name) for name in self._names())
        each = (v for value in values for v in (value if isinstance(value, tuple) else (value,)))
        return self._matrix(*check_pair(x, y, *each))

    def _names(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]

    @abstractmethod
    def _matrix(self, x: Array, y: Array) -> Array:
        """The matrix for checked samples."""


@dataclass(frozen=True, eq=False)
class GaussianKernel(Kernel):
    r"""
    Gaussian kernel :math:`k(x, y) = \exp(-|x - y|^2 / (2 l^2))`, or the mean of several.

    It is characteristic: its maximum mean discrepancy is zero only between equal distributions
    (Sriperumbudur et al. 2010, `Hilbert space embeddings and metrics on probability measures`).

        >>> import numpy as np
        >>> matrix = GaussianKernel(1.0)(np.zeros((1, 2)), np.array([[0.0, 0.0], [1.0, 1.0]]))
        >>> print(matrix.round(2))
        [[1.   0.37]]

    :param bandwidth: the l, in units of x: a number, or a sequence or 1-D array for the mean over
        several.
    :raises ValueError: if bandwidth is not positive and finite.
    """

    bandwidth: Numbers

    def _matrix(self, x: Array, y: Array) -> Array:
        xp, squared = array_namespace(x), squared_distances(x, y)
        widths = _components(self.bandwidth, x)
        return _mean([xp.exp(squared * (-0.5 / width**2)) for width in widths])

    def convolved(self, variance: Numbers) -> ConvolvedGaussianKernel:
        r"""
        The kernel after Gaussian noise on both of its arguments, without drawing any.

        .. math:: E\, k(x + \epsilon, y + \epsilon') = \prod_d
            \sqrt{\frac{l^2}{l^2 + 2 v_d}} \exp\Big(-\frac{(x_d - y_d)^2}{2 (l^2 + 2 v_d)}\Big),
            \qquad \epsilon, \epsilon' \sim N(0, \mathrm{diag}(v))

        It is the squared maximum mean discrepancy between two spread distributions, as a kernel on
        clean samples. The prefactor shrinks exponentially with the dimension, and may underflow.

            >>> import numpy as np
            >>> print(GaussianKernel(1.0).convolved(1.5)(np.zeros((1, 1)), np.zeros((1, 1))))
            [[0.5]]

        :param variance: variance of the noise, in squared units of x: a number, or one for each of
            the d dimensions.
        :raises ValueError: if variance is negative or not finite.
        """
        return ConvolvedGaussianKernel(self.bandwidth, variance)


@dataclass(frozen=True, eq=False)
class ConvolvedGaussianKernel(Kernel):
    """What :meth:`GaussianKernel.convolved` returns; it can be convolved again."""

    bandwidth: Numbers
    variance: Numbers

    def __post_init__(self) -> None:
        name = type(self).__name__
        object.__setattr__(self, "bandwidth", _as_numbers(name, "bandwidth", self.bandwidth))
        variance = self.variance
        if not isinstance(variance, int | float) and not array_type(variance):
            variance = np.asarray(variance, dtype=float)
        if _is_huge(variance):
            raise ValueError(samples.bad_variance(variance))
        known = numbers(variance)
        if known is None:
            variance = _as_parameter(variance)
            valid = (variance >= 0) & array_namespace(variance).isfinite(variance)
            variance = _where_valid(variance, valid)
        elif known.ndim > 1 or not np.all((known >= 0) & np.isfinite(known)):
            raise ValueError(samples.bad_variance(variance))
        object.__setattr__(self, "variance", _as_parameter(variance))

    def _matrix(self, x: Array, y: Array) -> Array:
        xp, variance = array_namespace(x), cast(self.variance, x)
        same = math.prod(variance.shape) == 1
        if not same and math.prod(variance.shape) != x.shape[1]:
            raise ValueError(samples.variance_width(variance.shape, x.shape[1]))
        widths = _components(self.bandwidth, x)
        clean = squared_distances(x, y) if same else None
        matrices = []
        for width in widths:
            # A factor that is the same in every dim counts d times; logs, since d may be large.
            factors = xp.log1p(2 * variance / width**2)
            shrinkage = xp.broadcast_to(factors, (x.shape[1],)).sum()
            spread = width**2 + 2 * variance
            if clean is not None:
                squared = clean / spread
            else:
                root = xp.sqrt(spread)
                squared = squared_distances(x / root, y / root)
            matrices.append(xp.exp(-0.5 * (squared + shrinkage)))
        return _mean(matrices)

    def convolved(self, variance: Numbers) -> ConvolvedGaussianKernel:
        """
        The kernel after more Gaussian noise on both of its arguments: variances add.

        :param variance: as in :meth:`GaussianKernel.convolved`.
        :raises ValueError: if variance is negative or not finite.
        """
        both: Any = self.variance, ConvolvedGaussianKernel(self.bandwidth, variance).variance
        like = leading(*both)
        # PyTorch does not add a NumPy array, which a sequence of numbers has become.
        one, more = (cast(v, like) if isinstance(v, np.ndarray) else v for v in both)
        return ConvolvedGaussianKernel(self.bandwidth, one + more)


@dataclass(frozen=True, eq=False)
class RationalQuadraticKernel(Kernel):
    r"""
    Rational quadratic kernel :math:`k(x, y) = (1 + |x - y|^2 / (2 \alpha l^2))^{-\alpha}`.

    It is a mixture of Gaussian kernels of all bandwidths and has heavy tails, so that its gradient
    still pulls samples that are far from the data (Binkowski et al. 2018, `Demystifying MMD GANs`,
    https://arxiv.org/abs/1801.01401).

        >>> import numpy as np
        >>> RationalQuadraticKernel(1.0)(np.zeros((1, 2)), np.array([[1.0, 1.0]]))
        array([[0.5]])

    :param lengthscale: the l, in units of x: a number, or several for the mean over a mixture.
    :param alpha: weight of the tails, the heavier the smaller: a number, or several.
    :raises ValueError: if either is not positive and finite, or both are several of different
        numbers.
    """

    lengthscale: Numbers
    alpha: Numbers = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths, alphas = _count(self.lengthscale), _count(self.alpha)
        if lengths != alphas and 1 not in (lengths, alphas):
            raise ValueError(samples.mixture_lengths(lengths, alphas))

    def _matrix(self, x: Array, y: Array) -> Array:
        xp, squared = array_namespace(x), squared_distances(x, y)
        lengths, alphas = _components(self.lengthscale, x), _components(self.alpha, x)
        count = max(len(lengths), len(alphas))
        pairs = zip(itertools.cycle(lengths), itertools.cycle(alphas), strict=True)
        return _mean(
            [
                xp.exp(-alpha * xp.log1p(squared / (2 * alpha * length**2)))
                for length, alpha in itertools.islice(pairs, count)
            ]
        )


@dataclass(frozen=True, eq=False)
class LaplaceKernel(Kernel):
    r"""
    Laplace kernel :math:`k(x, y) = \exp(-|x - y|_1 / l)`, the product of one per dimension.

    Its gradient where a coordinate of two points coincides is taken as zero.

        >>> import numpy as np
        >>> print(LaplaceKernel(2.0)(np.zeros((1, 2)), np.array([[1.0, 1.0]])).round(2))
        [[0.37]]

    :param bandwidth: the l, in units of x: a number, or several for the mean over a mixture.
    :raises ValueError: if bandwidth is not positive and finite.
    """

    bandwidth: Numbers

    def _matrix(self, x: Array, y: Array) -> Array:
        xp, distances = array_namespace(x), absolute_distances(x, y)
        widths = _components(self.bandwidth, x)
        return _mean([xp.exp(-distances / width) for width in widths])
