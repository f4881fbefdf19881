# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every noise kernel, once: what a kernel must pass in both backends is read off this list."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_RNG = np.random.default_rng(2)
VECTOR = np.array([0.2, 0.5, 1.5])
MATRIX = np.array([[0.7, 0.1, 0.0], [0.2, 0.8, 0.3], [0.1, 0.1, 0.7]])
SYMMETRIC = 0.6 * np.eye(3) + 0.4 / 3


@dataclass(frozen=True)
class Kernel:
    """
    A kernel as both packages make it.

    :param make: from a package, its module of distributions and the params to the kernel.
    :param params: their values by name; a number stays one, an array becomes the backend's.
    :param event_shape: event shape of x.
    :param y_event_shape: event shape of y, where it differs.
    :param discrete: whether x is a label, 0, 1 or 2.
    :param positive: whether x must be positive.
    :param stationary: whether it has a characteristic function.
    :param scales: the params that a change of units of x and y multiplies.
    :param variant: whether a shorter case of the same class stands in the list, so that what is
        slow to compile need not be repeated.
    """

    make: Callable[..., Any]
    params: dict[str, Any] = field(default_factory=lambda: {"scale": 0.4})
    event_shape: tuple[int, ...] = ()
    y_event_shape: tuple[int, ...] | None = None
    discrete: bool = False
    positive: bool = False
    stationary: bool = True
    scales: tuple[str, ...] = ("scale",)
    variant: bool = False

    @property
    def event_dim(self) -> int:
        return len(self.event_shape)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.event_shape if self.y_event_shape is None else self.y_event_shape

    @property
    def size(self) -> int:
        return int(np.prod(self.event_shape))

    def build(self, package: Any, array: Callable[[Any], Any], **changed: Any) -> Any:
        """
        The kernel in a package.

        :param package: ``pyro_spread`` or ``numpyro_spread``.
        :param array: makes an array of the backend out of one of NumPy.
        :param changed: params to take in place of the list's, as they are.
        """
        params = {n: v if np.isscalar(v) else array(v) for n, v in self.params.items()}
        backend = package.__name__.removesuffix("_spread")
        return self.make(
            package, importlib.import_module(f"{backend}.distributions"), **(params | changed)
        )

    def x(self, batch_shape: tuple[int, ...] = ()) -> np.ndarray:
        """Values of the site in float64, the same at every call."""
        rng, shape = np.random.default_rng(1), (*batch_shape, *self.event_shape)
        if self.discrete:
            return rng.integers(0, 3, shape)
        x = rng.normal(size=shape)
        return np.exp(x) if self.positive else x


def _around(transform: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda p, d, scale: p.TransformedNoise(transform(d.transforms), p.GaussianNoise(scale))


def _gaussian(p, d, scale):
    return p.GaussianNoise(scale)


def _laplace(p, d, scale):
    return p.LaplaceNoise(scale)


def _student(p, d, df, scale):
    return p.StudentTNoise(df, scale)


def _logistic(p, d, scale):
    return p.LogisticNoise(scale)


def _low_rank(p, d, scale, factor):
    return p.LowRankGaussianNoise(scale, factor)


def _factor(size: int, rank: int) -> np.ndarray:
    return _RNG.normal(size=(size, rank))


def _transformed_low_rank(p, d, scale, factor):
    return p.TransformedNoise(d.transforms.SoftplusTransform(), _low_rank(p, d, scale, factor))


def _permute(transforms: Any) -> Any:
    if "numpyro" in transforms.__name__:
        return transforms.PermuteTransform(np.array([2, 0, 1]))
    import torch

    return transforms.Permute(torch.tensor([2, 0, 1]))


KERNELS = {
    "gaussian": Kernel(_gaussian),
    "gaussian-event": Kernel(_gaussian, event_shape=(2, 3), variant=True),
    "gaussian-0d-array": Kernel(
        _gaussian, {"scale": np.array(0.4)}, event_shape=(3,), variant=True
    ),
    "gaussian-vector": Kernel(_gaussian, {"scale": VECTOR}, event_shape=(3,)),
    "laplace": Kernel(_laplace),
    "laplace-vector": Kernel(_laplace, {"scale": VECTOR}, event_shape=(3,), variant=True),
    "cauchy": Kernel(_student, {"df": 1.0, "scale": 0.4}),
    "student": Kernel(_student, {"df": 3, "scale": 0.4}, event_shape=(2,), variant=True),
    "student-vector": Kernel(
        _student,
        {"df": np.array([1.0, 2.5, 30.0]), "scale": VECTOR},
        event_shape=(3,),
        variant=True,
    ),
    "logistic": Kernel(_logistic),
    "logistic-vector": Kernel(_logistic, {"scale": VECTOR}, event_shape=(3,), variant=True),
    "low-rank": Kernel(
        _low_rank,
        {"scale": 0.4, "factor": _factor(4, 2)},
        event_shape=(4,),
        scales=("scale", "factor"),
    ),
    "low-rank-image": Kernel(
        _low_rank,
        {"scale": 0.4, "factor": _factor(6, 1)},
        event_shape=(2, 3),
        scales=("scale", "factor"),
        variant=True,
    ),
    "low-rank-vector-scale": Kernel(
        _low_rank,
        {"scale": np.array([0.1, 0.2, 0.4]), "factor": _factor(3, 2)},
        event_shape=(3,),
        scales=("scale", "factor"),
        variant=True,
    ),
    "transformed-exp": Kernel(_around(lambda t: t.ExpTransform()), stationary=False),
    "transformed-power": Kernel(
        _around(lambda t: t.PowerTransform(2.0)), positive=True, stationary=False, variant=True
    ),
    "transformed-permute": Kernel(
        _around(_permute), event_shape=(3,), stationary=False, variant=True
    ),
    "transformed-widens": Kernel(
        _around(lambda t: t.StickBreakingTransform()),
        event_shape=(3,),
        y_event_shape=(4,),
        stationary=False,
    ),
    "transformed-low-rank": Kernel(
        _transformed_low_rank,
        {"scale": 0.3, "factor": _factor(3, 1)},
        event_shape=(3,),
        stationary=False,
    ),
    "channel": Kernel(
        lambda p, d, matrix: p.ChannelNoise(matrix),
        {"matrix": MATRIX},
        discrete=True,
        stationary=False,
    ),
    "channel-symmetric": Kernel(
        lambda p, d, matrix: p.ChannelNoise(matrix),
        {"matrix": SYMMETRIC},
        event_shape=(2,),
        discrete=True,
        stationary=False,
        variant=True,
    ),
}
STATIONARY = [name for name, kernel in KERNELS.items() if kernel.stationary]
CONTINUOUS = [name for name, kernel in KERNELS.items() if not kernel.discrete]
