# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A distribution as the generic tests take it, and functions that make ours and exact spreads."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch

from pyro_spread import GaussianNoise, ImplicitDistribution, Simulator


def _affine(scale, shift, eps):
    return scale * eps.exp() + shift


@dataclass(frozen=True)
class Case:
    """
    A distribution of batch shape (3,).

    :param make: from its params to the distribution.
    :param params: their values by name.
    :param event_shape: its event shape.
    :param density: whether it has one.
    :param moments: whether it has a mean and a variance.
    :param listed: whether it is a kernel, whose integral ``test_every_kernel`` takes.
    """

    make: Callable[..., Any]
    params: dict[str, Any]
    event_shape: tuple[int, ...] = ()
    density: bool = True
    moments: bool = True
    discrete: bool = False
    listed: bool = False
    fixed: tuple[str, ...] = field(default=())

    def tensors(self, dtype=torch.float64):
        return {name: torch.tensor(value, dtype=dtype) for name, value in self.params.items()}

    def __call__(self, dtype=torch.float64):
        return self.make(**self.tensors(dtype))


def normal(x, scale):
    return dist.Normal(x, scale)


def diagonal(x, scale):
    return dist.Normal(x, scale).to_event(1)


def full(x, tril):
    return dist.MultivariateNormal(x, scale_tril=tril)


def implicit(weight, shift):
    base = dist.Normal(torch.zeros(3, 2).to(weight), 1.0).to_event(1)
    return ImplicitDistribution(functools.partial(_affine, weight, shift), base, (2,))


def _run(rng, drift, start):
    return start + drift + rng.normal(size=2)


def simulator(drift, start):
    return Simulator(_run, drift, start, event_shape=(2,), arg_event_dims=(0, 1), vectorized=False)


def mixture(x, scale, s):
    components = dist.Normal(torch.stack([x, x + 2.0], -1), scale)
    logits = torch.tensor([[0.3, -0.2]]).to(x).expand(3, 2)
    return GaussianNoise(s).spread(
        dist.MixtureSameFamily(dist.Categorical(logits=logits), components)
    )
