# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Positive definite kernels k(x, y) of the two-sample losses."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from pyro_spread.noise.base import as_parameter, is_positive, like
from spread_core.messages import noise, samples

#: A number, or several for a mixture of kernels.
Numbers: TypeAlias = float | Sequence[float] | torch.Tensor

# Up to here coordinates are subtracted one by one, which loses no digits at all; above, n x m x d
# differences would be too many to hold.
_DIRECT_DIMS = 8


def check_pair(x: torch.Tensor, y: torch.Tensor) -> None:
    """
    Refuse what are not two sets of samples of one space.

    :param x: samples of shape (n, d).
    :param y: samples of shape (m, d).
    :raises TypeError: if they are not tensors of one floating type.
    :raises ValueError: if they are not matrices of the same width.
    """
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise TypeError(samples.samples_type(name, got))
        if value.dim() != 2:
            raise ValueError(samples.samples_shape(name, value.shape))
    if x.dtype != y.dtype:
        raise TypeError(samples.samples_types_differ(x.dtype, y.dtype))
    if x.shape[1] != y.shape[1]:
        raise ValueError(samples.samples_widths_differ(x.shape, y.shape))


def squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """
    Squared Euclidean distances, never negative; their gradient at coincident points is zero.

    :param x: points of shape (n, d).
    :param y: points of shape (m, d).
    :return: matrix of shape (n, m).
    """
    if x.shape[1] <= _DIRECT_DIMS:
        return (x[:, None] - y).square().sum(-1)
    # |x|² + |y|² - 2 x.y is one matrix product, but loses digits far from the origin, hence the
    # centre. Distances do not depend on it, so that it needs no gradient.
    centre = y.detach().mean(0)
    x, y = x - centre, y - centre
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    squared = torch.addmm(norms, x, y.T, alpha=-2)
    # Equal points come out as rounding errors of either sign.
    rounding = 32 * torch.finfo(x.dtype).eps * norms
    return torch.where(squared > rounding, squared, torch.zeros_like(squared))


def _as_numbers(kernel: str, name: str, value: Any) -> Any:
    """A float, a tuple of numbers or a tensor of at most one dim, each positive and finite."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        value = tuple(as_parameter(v) if is_positive(v) else v for v in value)
        shape: Sequence[int] = (len(value),)
        valid = all(is_positive(v) and np.ndim(v) == 0 for v in value)
    else:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
        valid = is_positive(value)
    if not valid:
        raise ValueError(noise.bad_positive(kernel, name, value))
    if len(shape) > 1 or 0 in shape:
        raise ValueError(samples.mixture_shape(kernel, name, shape))
    return value if isinstance(value, tuple) else as_parameter(value)


def _components(value: Any, x: torch.Tensor) -> list[Any]:
    """Every number of a mixture: floats as they are, tensors in the type of x."""
    if isinstance(value, torch.Tensor):
        return list(like(value, x).reshape(-1).unbind())
    values = value if isinstance(value, tuple) else (value,)
    return [like(v, x) if isinstance(v, torch.Tensor) else v for v in values]


def _mean(matrices: list[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(torch.add, matrices) / len(matrices)


def _count(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    return len(value) if isinstance(value, tuple) else 1


class _Kernel(ABC):
    """A small immutable object whose fields are positive numbers, or several for a mixture."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _as_numbers(type(self).__name__, field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """
        The matrix of k(x_i, y_j).

        :param x: samples of shape (n, d).
        :param y: samples of shape (m, d).
        :return: matrix of shape (n, m).
        :raises TypeError: if the samples are not tensors of one floating type.
        :raises ValueError: if they are not matrices of the same width.
        """
        check_pair(x, y)
        return self._matrix(x, y)

    @abstractmethod
    def _matrix(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The matrix for checked samples."""


@dataclass(frozen=True, eq=False)
class GaussianKernel(_Kernel):
    r"""
    Gaussian kernel :math:`k(x, y) = \exp(-|x - y|^2 / (2 l^2))`, or the mean of several.

    It is characteristic: its maximum mean discrepancy is zero only between equal distributions
    (Sriperumbudur et al. 2010, `Hilbert space embeddings and metrics on probability measures`).

        >>> import torch
        >>> GaussianKernel(1.0)(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        tensor([[1.0000, 0.3679]])

    :param bandwidth: the l, in units of x: a number, or a sequence or 1-D tensor for the mean over
        several.
    :raises ValueError: if bandwidth is not positive and finite.
    """

    bandwidth: Numbers

    def _matrix(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        squared = squared_distances(x, y)
        widths = _components(self.bandwidth, x)
        return _mean([torch.exp(squared * (-0.5 / width**2)) for width in widths])

    def convolved(self, variance: Numbers) -> ConvolvedGaussianKernel:
        r"""
        The kernel after Gaussian noise on both of its arguments, without drawing any.

        .. math:: E\, k(x + \epsilon, y + \epsilon') = \prod_d
            \sqrt{\frac{l^2}{l^2 + 2 v_d}} \exp\Big(-\frac{(x_d - y_d)^2}{2 (l^2 + 2 v_d)}\Big),
            \qquad \epsilon, \epsilon' \sim N(0, \mathrm{diag}(v))

        It is the squared maximum mean discrepancy between two spread distributions, as a kernel on
        clean samples. The prefactor shrinks exponentially with the dimension, and may underflow.

            >>> import torch
            >>> GaussianKernel(1.0).convolved(1.5)(torch.zeros(1, 1), torch.zeros(1, 1))
            tensor([[0.5000]])

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
        if not isinstance(variance, int | float | torch.Tensor):
            variance = torch.as_tensor(np.asarray(variance, dtype=float))
        values = torch.as_tensor(variance).detach()
        if values.dim() > 1 or not bool(((values >= 0) & torch.isfinite(values)).all()):
            raise ValueError(samples.bad_variance(variance))
        object.__setattr__(self, "variance", as_parameter(variance))

    def _matrix(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        variance = like(self.variance, x)  # type: ignore[arg-type]
        if variance.numel() not in (1, x.shape[1]):
            raise ValueError(samples.variance_width(variance.shape, x.shape[1]))
        widths = _components(self.bandwidth, x)
        same = variance.numel() == 1
        clean = squared_distances(x, y) if same else None
        matrices = []
        for width in widths:
            # A factor that is the same in every dim counts d times; logs, since d may be large.
            shrinkage = torch.log1p(2 * variance / width**2).expand(x.shape[1]).sum()
            spread = width**2 + 2 * variance
            if clean is not None:
                squared = clean / spread
            else:
                root = spread.sqrt()
                squared = squared_distances(x / root, y / root)
            matrices.append(torch.exp(-0.5 * (squared + shrinkage)))
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

        >>> import torch
        >>> RationalQuadraticKernel(1.0)(torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]))
        tensor([[0.5000]])

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

    def _matrix(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        squared = squared_distances(x, y)
        lengths, alphas = _components(self.lengthscale, x), _components(self.alpha, x)
        count = max(len(lengths), len(alphas))
        pairs = zip(itertools.cycle(lengths), itertools.cycle(alphas), strict=True)
        return _mean(
            [
                torch.exp(-alpha * torch.log1p(squared / (2 * alpha * length**2)))
                for length, alpha in itertools.islice(pairs, count)
            ]
        )


@dataclass(frozen=True, eq=False)
class LaplaceKernel(_Kernel):
    r"""
    Laplace kernel :math:`k(x, y) = \exp(-|x - y|_1 / l)`, the product of one per dimension.

    Its gradient where a coordinate of two points coincides is taken as zero.

        >>> import torch
        >>> LaplaceKernel(2.0)(torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]))
        tensor([[0.3679]])

    :param bandwidth: the l, in units of x: a number, or several for the mean over a mixture.
    :raises ValueError: if bandwidth is not positive and finite.
    """

    bandwidth: Numbers

    def _matrix(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        distances = torch.cdist(x, y, p=1.0)
        widths = _components(self.bandwidth, x)
        return _mean([torch.exp(-distances / width) for width in widths])
