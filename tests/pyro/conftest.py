# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every kernel as tests of Pyro take it."""

from typing import Any

import pytest
import torch
from every import KERNELS, Kernel

import pyro_spread
from pyro_spread import SpreadNoise


class NoiseCase:
    """A kernel of the one list, made of tensors, and values that it can take."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.event_shape, self.event_dim = kernel.event_shape, kernel.event_dim
        self.y_shape, self.size = kernel.y_shape, kernel.size
        self.discrete, self.positive = kernel.discrete, kernel.positive
        self.learns = "scale" in kernel.params

    def make(self, dtype: torch.dtype) -> SpreadNoise:
        """The kernel with tensors of this type."""
        return self._kernel.build(pyro_spread, lambda value: torch.tensor(value, dtype=dtype))

    def learnable(self, scale: Any) -> SpreadNoise:
        """The kernel with this scale."""
        return self._kernel.build(
            pyro_spread, lambda value: torch.tensor(value, dtype=torch.float32), scale=scale
        )

    def x(self, batch_shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Any:
        """Values of the site, the same at every call."""
        x = torch.tensor(self._kernel.x(batch_shape))
        return x if self.discrete else x.to(dtype)


NOISES = {name: NoiseCase(kernel) for name, kernel in KERNELS.items()}


def pytest_generate_tests(metafunc: Any) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", list(NOISES.values()), ids=list(NOISES))


@pytest.fixture
def double():
    """Float64 as the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
