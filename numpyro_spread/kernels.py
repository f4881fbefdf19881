# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Positive definite kernels k(x, y) of the two-sample losses."""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from numpyro_spread._pytree import FieldsAsPytree
from numpyro_spread.noise.base import is_concrete, is_positive, positive_parameter, where_valid
from spread_core.messages import noise, samples

#: A number, or several for a mixture of kernels.
Numbers: TypeAlias = ArrayLike | Sequence[float]

# Up to here coordinates are subtracted one by one, which loses no digits at all; above, n x m x d
# differences would be too many to hold.
_DIRECT_DIMS = 8


def check_pair(x: ArrayLike, y: ArrayLike) -> None:
    """
    Refuse what are not two sets of samples of one space.

    :param x: samples of shape (n, d).
    :param y: samples of shape (m, d).
    :raises TypeError: if they are not arrays of one floating type.
    :raises ValueError: if they are not matrices of the same width.
    """
    for name, value in (("x", x), ("y", y)):
        known = isinstance(value, jax.Array | np.ndarray)
        if not known or not jnp.issubdtype(value.dtype, jnp.floating):  # type: ignore[union-attr]
            got = value.dtype if known else type(value).__name__  # type: ignore[union-attr]
            raise TypeError(samples.samples_type(name, got))
        if jnp.ndim(value) != 2:
            raise ValueError(samples.samples_shape(name, jnp.shape(value)))
    if jnp.result_type(x) != jnp.result_type(y):
        raise TypeError(samples.samples_types_differ(jnp.result_type(x), jnp.result_type(y)))
    if jnp.shape(x)[1] != jnp.shape(y)[1]:
        raise ValueError(samples.samples_widths_differ(jnp.shape(x), jnp.shape(y)))


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """
    Squared Euclidean distances, never negative; their gradient at coincident points is zero.

    :param x: points of shape (n, d).
    :param y: points of shape (m, d).
    :return: matrix of shape (n, m).
    """
    if x.shape[1] <= _DIRECT_DIMS:
        return jnp.square(x[:, None] - y).sum(-1)
    # |x|² + |y|² - 2 x.y is one matrix product, but loses digits far from the origin, hence the
    # centre. Distances do not depend on it, so that it needs no gradient.
    centre = lax.stop_gradient(y).mean(0)
    x, y = x - centre, y - centre
    norms = jnp.square(x).sum(1)[:, None] + jnp.square(y).sum(1)
    # Accelerators multiply in fewer digits by default, which the difference would bring to light.
    squared = norms - 2 * jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)
    # Equal points come out as rounding errors of either sign.
    rounding = 32 * jnp.finfo(x.dtype).eps * norms
    return jnp.where(squared > rounding, squared, 0)


def _absolute_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Sums of absolute differences, without holding n x m x d of them."""

    def add(total: jax.Array, columns: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        one, other = columns
        return total + jnp.abs(one[:, None] - other), None

    start = jnp.zeros((len(x), len(y)), x.dtype)
    # Differences are cheap to compute again, and their signs are all that a gradient needs.
    return lax.scan(jax.checkpoint(add, prevent_cse=False), start, (x.T, y.T))[0]


def _as_numbers(kernel: str, name: str, value: Any) -> Any:
    """A float, a tuple of numbers or an array of at most one dim, each positive and finite."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        value = tuple(positive_parameter(v) if is_positive(v) else v for v in value)
        shape: Sequence[int] = (len(value),)
        valid = all(is_positive(v) and np.ndim(v) == 0 for v in value)
    else:
        shape = tuple(value.shape) if isinstance(value, jax.Array) else ()
        valid = is_positive(value)
    if not valid:
        raise ValueError(noise.bad_positive(kernel, name, value))
    if len(shape) > 1 or 0 in shape:
        raise ValueError(samples.mixture_shape(kernel, name, shape))
    return value if isinstance(value, tuple) else positive_parameter(value)


def _components(value: Any, x: jax.Array) -> list[jax.Array]:
    """Every number of a mixture, in the type of x."""
    values = value if isinstance(value, tuple) else jnp.ravel(jnp.asarray(value, x.dtype))
    return [jnp.asarray(v, x.dtype) for v in values]


def _mean(matrices: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, matrices) / len(matrices)


def _count(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else int(np.prod(jnp.shape(value)))


class _Kernel(FieldsAsPytree, ABC):
    """
    A small immutable object whose fields are positive numbers, or several for a mixture.

    It is a JAX pytree. Values of tracers, as of a bandwidth that is learned, are not checked.
    """

    def __post_init__(self) -> None:
        for name in self._fields():
            value = _as_numbers(type(self).__name__, name, getattr(self, name))
            object.__setattr__(self, name, value)

    def __call__(self, x: ArrayLike, y: ArrayLike) -> jax.Array:
        """
        The matrix of k(x_i, y_j).

        :param x: samples of shape (n, d).
        :param y: samples of shape (m, d).
        :return: matrix of shape (n, m).
        :raises TypeError: if the samples are not arrays of one floating type.
        :raises ValueError: if they are not matrices of the same width.
        """
        check_pair(x, y)
        return self._matrix(jnp.asarray(x), jnp.asarray(y))

    @abstractmethod
    def _matrix(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The matrix for checked samples."""


@dataclass(frozen=True, eq=False)
class GaussianKernel(_Kernel):
    r"""
    Gaussian kernel :math:`k(x, y) = \exp(-|x - y|^2 / (2 l^2))`, or the mean of several.

    It is characteristic: its maximum mean discrepancy is zero only between equal distributions
    (Sriperumbudur et al. 2010, `Hilbert space embeddings and metrics on probability measures`).

        >>> import jax.numpy as jnp
        >>> matrix = GaussianKernel(1.0)(jnp.zeros((1, 2)), jnp.array([[0.0, 0.0], [1.0, 1.0]]))
        >>> print(matrix.round(2))
        [[1.   0.37]]

    :param bandwidth: the l, in units of x: a number, or a sequence or 1-D array for the mean over
        several.
    :raises ValueError: if bandwidth is not positive and finite.
    """

    bandwidth: Numbers

    def _matrix(self, x: jax.Array, y: jax.Array) -> jax.Array:
        squared = squared_distances(x, y)
        widths = _components(self.bandwidth, x)
        return _mean([jnp.exp(squared * (-0.5 / width**2)) for width in widths])

    def convolved(self, variance: Numbers) -> ConvolvedGaussianKernel:
        r"""
        The kernel after Gaussian noise on both of its arguments, without drawing any.

        .. math:: E\, k(x + \epsilon, y + \epsilon') = \prod_d
            \sqrt{\frac{l^2}{l^2 + 2 v_d}} \exp\Big(-\frac{(x_d - y_d)^2}{2 (l^2 + 2 v_d)}\Big),
            \qquad \epsilon, \epsilon' \sim N(0, \mathrm{diag}(v))

        It is the squared maximum mean discrepancy between two spread distributions, as a kernel on
        clean samples. The prefactor shrinks exponentially with the dimension, and may underflow.

            >>> import jax.numpy as jnp
            >>> print(GaussianKernel(1.0).convolved(1.5)(jnp.zeros((1, 1)), jnp.zeros((1, 1))))
            [[0.5]]

        :param variance: variance of the noise, in squared units of x: a number, or one for each of
            the d dimensions.
        :raises ValueError: if variance is negative or not finite.
        """
        return ConvolvedGaussianKernel(self.bandwidth, variance)


@dataclass(frozen=True, eq=False)
class ConvolvedGaussianKernel(_Kernel):
    """What :meth:`GaussianKernel.convolved` returns; it can be convolved again."""

    bandwidth: Numbers
    variance: Numbers

    def __post_init__(self) -> None:
        name = type(self).__name__
        object.__setattr__(self, "bandwidth", _as_numbers(name, "bandwidth", self.bandwidth))
        variance = self.variance
        if is_concrete(variance):
            # A list stays in double precision, and NumPy sees values inside a jit trace too.
            values = np.asarray(variance, dtype=float)
            if values.ndim > 1 or not np.all((values >= 0) & np.isfinite(values)):
                raise ValueError(samples.bad_variance(variance))
            variance = variance if isinstance(variance, jax.Array) else values
        else:
            variance = jnp.asarray(variance)
            variance = where_valid(variance, (variance >= 0) & jnp.isfinite(variance))
        object.__setattr__(self, "variance", variance)

    def _matrix(self, x: jax.Array, y: jax.Array) -> jax.Array:
        variance = jnp.asarray(self.variance, x.dtype)
        if variance.size not in (1, x.shape[1]):
            raise ValueError(samples.variance_width(variance.shape, x.shape[1]))
        widths = _components(self.bandwidth, x)
        clean = squared_distances(x, y) if variance.size == 1 else None
        matrices = []
        for width in widths:
            # A factor that is the same in every dim counts d times; logs, since d may be large.
            factors = jnp.log1p(2 * variance / width**2)
            shrinkage = jnp.broadcast_to(factors, x.shape[1:]).sum()
            spread = width**2 + 2 * variance
            if clean is not None:
                squared = clean / spread
            else:
                root = jnp.sqrt(spread)
                squared = squared_distances(x / root, y / root)
            matrices.append(jnp.exp(-0.5 * (squared + shrinkage)))
        return _mean(matrices)

    def convolved(self, variance: Numbers) -> ConvolvedGaussianKernel:
        """
        The kernel after more Gaussian noise on both of its arguments: variances add.

        :param variance: as in :meth:`GaussianKernel.convolved`.
        :raises ValueError: if variance is negative or not finite.
        """
        more = ConvolvedGaussianKernel(self.bandwidth, variance).variance
        return ConvolvedGaussianKernel(self.bandwidth, self.variance + more)  # type: ignore[operator]


@dataclass(frozen=True, eq=False)
class RationalQuadraticKernel(_Kernel):
    r"""
    Rational quadratic kernel :math:`k(x, y) = (1 + |x - y|^2 / (2 \alpha l^2))^{-\alpha}`.

    It is a mixture of Gaussian kernels of all bandwidths and has heavy tails, so that its gradient
    still pulls samples that are far from the data (Binkowski et al. 2018, `Demystifying MMD GANs`,
    https://arxiv.org/abs/1801.01401).

        >>> import jax.numpy as jnp
        >>> matrix = RationalQuadraticKernel(1.0)(jnp.zeros((1, 2)), jnp.array([[1.0, 1.0]]))
        >>> print(matrix.round(2))
        [[0.5]]

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

    def _matrix(self, x: jax.Array, y: jax.Array) -> jax.Array:
        squared = squared_distances(x, y)
        lengths, alphas = _components(self.lengthscale, x), _components(self.alpha, x)
        count = max(len(lengths), len(alphas))
        pairs = zip(itertools.cycle(lengths), itertools.cycle(alphas), strict=True)
        return _mean(
            [
                jnp.exp(-alpha * jnp.log1p(squared / (2 * alpha * length**2)))
                for length, alpha in itertools.islice(pairs, count)
            ]
        )


@dataclass(frozen=True, eq=False)
class LaplaceKernel(_Kernel):
    r"""
    Laplace kernel :math:`k(x, y) = \exp(-|x - y|_1 / l)`, the product of one per dimension.

    Its gradient where a coordinate of two points coincides is taken as zero.

        >>> import jax.numpy as jnp
        >>> print(LaplaceKernel(2.0)(jnp.zeros((1, 2)), jnp.array([[1.0, 1.0]])).round(2))
        [[0.37]]

    :param bandwidth: the l, in units of x: a number, or several for the mean over a mixture.
    :raises ValueError: if bandwidth is not positive and finite.
    """

    bandwidth: Numbers

    def _matrix(self, x: jax.Array, y: jax.Array) -> jax.Array:
        distances = _absolute_distances(x, y)
        widths = _components(self.bandwidth, x)
        return _mean([jnp.exp(-distances / width) for width in widths])
