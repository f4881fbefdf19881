# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The kernels under test: one dict of named constructors, which feeds every contract test."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import transforms

from pyro_spread import (
    ChannelNoise,
    GaussianNoise,
    LaplaceNoise,
    LogisticNoise,
    LowRankGaussianNoise,
    SpreadNoise,
    StudentTNoise,
    TransformedNoise,
)


@dataclass(frozen=True)
class NoiseCase:
    """
    A kernel and values it can take.

    :param make: constructor, given the type of its tensors.
    :param event_shape: event shape of x.
    :param learnable: constructor, given the scale.
    :param y_event_shape: event shape of y, where it differs.
    """

    make: Callable[[torch.dtype], SpreadNoise]
    event_shape: tuple[int, ...] = ()
    learnable: Callable[[Any], SpreadNoise] | None = None
    y_event_shape: tuple[int, ...] | None = None
    discrete: bool = False
    positive: bool = False

    @property
    def event_dim(self) -> int:
        return len(self.event_shape)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.event_shape if self.y_event_shape is None else self.y_event_shape

    def x(self, batch_shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Any:
        """Values of the site, the same at every call."""
        generator = torch.Generator().manual_seed(1)
        shape = (*batch_shape, *self.event_shape)
        if self.discrete:
            return torch.randint(0, 3, shape, generator=generator)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (x.exp() if self.positive else x).to(dtype)


def _number(kernel: Callable[..., SpreadNoise], **shape: Any) -> NoiseCase:
    return NoiseCase(lambda dtype: kernel(0.4), learnable=kernel, **shape)


def _tensor(kernel: Callable[..., SpreadNoise]) -> NoiseCase:
    scale = [0.2, 0.5, 1.5]
    return NoiseCase(lambda dtype: kernel(torch.tensor(scale, dtype=dtype)), (3,), kernel)


def _student(df: Any) -> Callable[..., SpreadNoise]:
    return lambda scale: StudentTNoise(df, scale)


def _factor(size: int, rank: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(size, rank, generator=torch.Generator().manual_seed(2)).to(dtype)


def _matrix(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([[0.7, 0.1, 0.0], [0.2, 0.8, 0.3], [0.1, 0.1, 0.7]], dtype=dtype)


def _around(transform: Any) -> Callable[..., SpreadNoise]:
    return lambda scale: TransformedNoise(transform, GaussianNoise(scale))


NOISES: dict[str, NoiseCase] = {
    "gaussian": _number(GaussianNoise),
    "gaussian-event": _number(GaussianNoise, event_shape=(2, 3)),
    "gaussian-0d-tensor": NoiseCase(
        lambda dtype: GaussianNoise(torch.tensor(0.4, dtype=dtype)), (3,), GaussianNoise
    ),
    "gaussian-vector": _tensor(GaussianNoise),
    "laplace": _number(LaplaceNoise),
    "laplace-vector": _tensor(LaplaceNoise),
    "cauchy": _number(_student(1.0)),
    "student": _number(_student(3), event_shape=(2,)),
    "student-vector": _tensor(_student(torch.tensor([1.0, 2.5, 30.0]))),
    "logistic": _number(LogisticNoise),
    "logistic-vector": _tensor(LogisticNoise),
    "low-rank": NoiseCase(
        lambda dtype: LowRankGaussianNoise(0.4, _factor(4, 2, dtype)),
        (4,),
        lambda scale: LowRankGaussianNoise(scale, _factor(4, 2, torch.float32)),
    ),
    "low-rank-image": NoiseCase(
        lambda dtype: LowRankGaussianNoise(0.4, _factor(6, 1, dtype)), (2, 3)
    ),
    "low-rank-vector-scale": NoiseCase(
        lambda dtype: LowRankGaussianNoise(
            torch.tensor([0.1, 0.2, 0.4], dtype=dtype), _factor(3, 2, dtype)
        ),
        (3,),
    ),
    "transformed-exp": _number(_around(transforms.ExpTransform())),
    "transformed-power": _number(
        _around(transforms.PowerTransform(torch.tensor(2.0))), positive=True
    ),
    "transformed-permute": _number(
        _around(dist.transforms.Permute(torch.tensor([2, 0, 1]))), event_shape=(3,)
    ),
    "transformed-widens": _number(
        _around(transforms.StickBreakingTransform()), event_shape=(3,), y_event_shape=(4,)
    ),
    "transformed-low-rank": NoiseCase(
        lambda dtype: TransformedNoise(
            transforms.TanhTransform(), LowRankGaussianNoise(0.3, _factor(3, 1, dtype))
        ),
        (3,),
    ),
    "channel": NoiseCase(lambda dtype: ChannelNoise(_matrix(dtype)), discrete=True),
    "channel-symmetric": NoiseCase(
        lambda dtype: ChannelNoise(ChannelNoise.symmetric(3, 0.4).matrix.to(dtype)),
        (2,),
        discrete=True,
    ),
}


def pytest_generate_tests(metafunc: Any) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", list(NOISES.values()), ids=list(NOISES))


@pytest.fixture
def double():
    """Float64 as the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
