# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The PyTorch and Pyro programs that are compared; all do the same mathematics on the same nets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from harness import Contestant
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_spread import GaussianNoise, SpreadELBO, compiled

SCALE = 0.3
LEARNING_RATE = 1e-3


Likelihood = Callable[[Tensor], dist.Distribution]


class Encoder(nn.Module):
    """A net whose output is split into mean and log standard deviation of the latent variable."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.net(x).chunk(2, dim=-1)
        return loc, log_scale


@dataclass(frozen=True)
class Setup:
    """Nets, data and sizes of one comparison."""

    event_shape: tuple[int, ...]
    latent: int
    make_encoder: Callable[[], nn.Module]
    make_decoder: Callable[[], nn.Module]
    batch: int

    def data(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand((self.batch, *self.event_shape), generator=generator)

    def nets(self, seed: int) -> tuple[Encoder, nn.Module]:
        torch.manual_seed(seed)
        return Encoder(self.make_encoder()), self.make_decoder()


def mlp(batch: int, dim: int = 784, hidden: int = 400, latent: int = 20) -> Setup:
    return Setup(
        (dim,),
        latent,
        lambda: nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)),
        lambda: nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, dim), nn.Sigmoid()
        ),
        batch,
    )


def conv(batch: int, size: int = 64, width: int = 16, latent: int = 32) -> Setup:
    """Three times: halve the image into channels, then convolve 3 x 3; and the mirror image."""
    w, s = width, size // 8

    def encoder() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after in ((3, w), (w, 2 * w), (2 * w, 4 * w)):
            convolution = nn.Conv2d(4 * before, after, 3, padding=1)
            layers += [nn.PixelUnshuffle(2), convolution, nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * w * s * s, 2 * latent))

    def decoder() -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(latent, 4 * w * s * s), nn.ReLU()]
        layers += [nn.Unflatten(1, (4 * w, s, s))]
        for before, after in ((4 * w, 2 * w), (2 * w, w), (w, 3)):
            convolution = nn.Conv2d(before, 4 * after, 3, padding=1)
            layers += [convolution, nn.PixelShuffle(2), nn.Sigmoid() if after == 3 else nn.ReLU()]
        return nn.Sequential(*layers)

    return Setup((3, size, size), latent, encoder, decoder, batch)


class Model(nn.Module):
    """
    p(z) and p(x|z). With a ``name`` the nets are put into the param store, as SVI wants it;
    without, they are found as this module's parameters, as ``loss(model, guide)`` wants it.
    """

    def __init__(
        self,
        decoder: nn.Module,
        latent: int,
        likelihood: Likelihood,
        name: str,
    ) -> None:
        super().__init__()
        self.decoder, self.latent, self.likelihood, self.name = decoder, latent, likelihood, name

    def forward(self, x: Tensor) -> None:
        decoder = pyro.module(f"{self.name}.decoder", self.decoder) if self.name else self.decoder
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(decoder(z)), obs=x)


class Guide(nn.Module):
    """q(z|x)."""

    def __init__(self, encoder: Encoder, name: str) -> None:
        super().__init__()
        self.encoder, self.name = encoder, name

    def forward(self, x: Tensor) -> None:
        encoder = pyro.module(f"{self.name}.encoder", self.encoder) if self.name else self.encoder
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = encoder(x)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def delta(value: Tensor) -> dist.Distribution:
    return dist.Delta(value, event_dim=value.dim() - 1)


def normal(value: Tensor) -> dist.Distribution:
    return dist.Normal(value, SCALE).to_event(value.dim() - 1)


def _keep(x: Tensor) -> Tensor:
    return x


def _noised(x: Tensor) -> Tensor:
    return x + SCALE * torch.randn_like(x)


def _program(kind: str) -> tuple[Likelihood, ELBO, Callable[[Tensor], Tensor]]:
    if kind == "spread":
        return delta, SpreadELBO({"x": GaussianNoise(SCALE)}), _keep
    return normal, Trace_ELBO(), _noised


def svi_contestant(kind: str, setup: Setup, seed: int, is_compiled: bool) -> Contestant:
    """``SVI.step`` with ``pyro.optim.Adam``."""
    likelihood, loss, prepare = _program(kind)
    loss = compiled(loss) if is_compiled else loss
    encoder, decoder = setup.nets(seed)
    name = f"{kind}.{id(setup)}"  # contestants share one param store
    model, guide = Model(decoder, setup.latent, likelihood, name), Guide(encoder, name)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), loss)
    x = setup.data(seed)

    def run(steps: int) -> float:
        for _ in range(steps):
            value = svi.step(prepare(x))
        return value

    return run


def module_contestant(kind: str, setup: Setup, seed: int, is_compiled: bool) -> Contestant:
    """``loss(model, guide)`` as a torch module, with one fused Adam for all parameters."""
    likelihood, loss, prepare = _program(kind)
    loss = compiled(loss) if is_compiled else loss
    encoder, decoder = setup.nets(seed)
    model, guide = Model(decoder, setup.latent, likelihood, ""), Guide(encoder, "")
    module = loss(model, guide)
    optimiser = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=True)
    x = setup.data(seed)

    def run(steps: int) -> float:
        for _ in range(steps):
            optimiser.zero_grad()
            value = module(prepare(x))
            value.backward()
            optimiser.step()
        return value.item()

    return run


def hand_contestant(setup: Setup, seed: int, is_compiled: bool) -> Contestant:
    """
    The training loop that a PyTorch user writes, with one fused Adam.

    As ``Trace_ELBO`` does it, KL[q || p] is estimated by log q(z|y) - log p(z) at the sampled z, so
    that ratios to it compare programs and not estimators.
    """
    encoder, decoder = setup.nets(seed)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    x = setup.data(seed)
    constant = 0.5 * x.numel() * math.log(2 * math.pi * SCALE**2)

    def loss(x: Tensor) -> Tensor:
        y = x + SCALE * torch.randn_like(x)
        loc, log_scale = encoder(y)
        eps = torch.randn_like(loc)
        z = loc + log_scale.exp() * eps
        reconstruction = (y - decoder(z)).square().sum() / (2 * SCALE**2) + constant
        kl = 0.5 * (z.square() - eps.square()).sum() - log_scale.sum()
        return reconstruction + kl

    value_of = torch.compile(loss) if is_compiled else loss

    def run(steps: int) -> float:
        for _ in range(steps):
            optimiser.zero_grad()
            value = value_of(x)
            value.backward()
            optimiser.step()
        return value.item()

    return run


def make(name: str, setup: Setup, seed: int) -> Contestant:
    """
    The contestant called ``name``.

    "hand", or "spread" or "stock" through "svi" or "module"; as it is, or "compiled".

    All start from the same nets and see the same data.
    """
    is_compiled = name.endswith("-compiled")
    kind, _, way = name.removesuffix("-compiled").partition("-")
    if kind == "hand":
        return hand_contestant(setup, seed, is_compiled)
    factory = svi_contestant if way == "svi" else module_contestant
    return factory(kind, setup, seed, is_compiled)
