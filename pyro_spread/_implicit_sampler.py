# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Implicit distributions with params: a Gaussian plus the output of an MLP."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_spread.distributions import ImplicitDistribution
from spread_core.latents import EMBEDDING_DIM, QUANTILES, LatentGroup


def _push(
    net: Net,
    loc: torch.Tensor,
    scale: torch.Tensor,
    context: torch.Tensor | None,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Map noise to draws: a Gaussian, plus the output of the net in units of its scale."""
    return loc + scale * (noise[..., : loc.shape[-1]] + net(noise, context))


def _implicit(
    net: Net, loc: torch.Tensor, scale: torch.Tensor, context: torch.Tensor | None
) -> ImplicitDistribution:
    base = dist.Normal(loc.new_zeros(net.noise_size), 1.0).to_event(1)
    fn = functools.partial(_push, net, loc, scale, context)
    return ImplicitDistribution(fn, base.expand(loc.shape[:-1]), loc.shape[-1:])


class Net(nn.Module):
    """An MLP of the noise, its signs and what is known of the datum; it is zero at first."""

    def __init__(
        self, noise_size: int, context_size: int, hidden: Sequence[int], like: torch.Tensor
    ) -> None:
        super().__init__()
        self.noise_size = noise_size
        linear = functools.partial(nn.Linear, dtype=like.dtype, device=like.device)
        sizes = [2 * noise_size, *hidden, like.shape[-1]]
        self.layers = nn.ModuleList(linear(*pair) for pair in itertools.pairwise(sizes))
        # A layer of its own: it runs once per datum, however many draws there are of each.
        self.context = linear(context_size, sizes[1], bias=False) if context_size else None
        last = [self.layers[-1]] if hidden else [*self.children()]
        for parameter in (p for module in last for p in module.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, noise: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        # A continuous map would leave draws between two modes.
        x = self.layers[0](torch.cat([noise, noise.sign()], -1))
        if self.context is not None:
            x = x + self.context(context)
        for layer in self.layers[1:]:
            x = layer(nn.functional.silu(x))
        return x


class FreeSampler(PyroModule):
    """Location, scale and embedding of every datum, as params."""

    def __init__(
        self, loc: torch.Tensor, scale: torch.Tensor, local: bool, net: Callable[..., Net]
    ) -> None:
        super().__init__()
        self.loc = PyroParam(loc, constraints.real, 1)
        self.scale = PyroParam(scale, constraints.softplus_positive, 1)
        if local:
            embedding = loc.new_zeros((*loc.shape[:-1], EMBEDDING_DIM))
            self.embedding = PyroParam(embedding, constraints.real, 1)
        self._local = local
        self.net = net(EMBEDDING_DIM if local else 0)

    def forward(self, features: None) -> ImplicitDistribution:
        context = self.embedding if self._local else None
        return _implicit(self.net, self.loc, self.scale, context)


class AmortisedSampler(PyroModule):
    """Location and scale of every datum, linear in its features."""

    def __init__(
        self, loc: torch.Tensor, scale: torch.Tensor, size: int, net: Callable[..., Net]
    ) -> None:
        super().__init__()
        unconstrained_scale = scale + torch.log(-torch.expm1(-scale))
        for name, start in (("loc", loc), ("scale", unconstrained_scale)):
            head = nn.Linear(size, start.shape[-1], dtype=start.dtype, device=start.device)
            with torch.no_grad():
                head.weight.zero_()
                head.bias.copy_(start.reshape(-1))
            setattr(self, name, head)
        self.net = net(size)

    def forward(self, features: torch.Tensor) -> ImplicitDistribution:
        scale = nn.functional.softplus(self.scale(features))
        return _implicit(self.net, self.loc(features), scale, features)


def location_and_scale(
    draws: torch.Tensor, group: LatentGroup, amortised: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Where the guide starts: of shape batch of all data + (size,), or (size,) where amortised.

    :param draws: draws of shape (draws,) + batch + (size,).
    """
    axes = group.pooled_axes(amortised)
    low, loc, high = np.quantile(draws.cpu().numpy(), QUANTILES, axis=axes, keepdims=True)[:, 0]
    with np.errstate(invalid="ignore"):
        scale = (high - low) / 2
    # Of a prior that puts mass at the ends of its support, or has no width.
    loc = np.where(np.isfinite(loc), loc, 0.0)
    scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)
    if amortised:
        batch: tuple[int, ...] = ()
        loc, scale = loc.reshape(-1), scale.reshape(-1)
    else:
        batch = group.batch_shape({plate.name: plate.full_size for plate in group.plates})
    shape = (*batch, group.size)
    first, second = (draws.new_tensor(np.broadcast_to(x, shape).copy()) for x in (loc, scale))
    return first, second
