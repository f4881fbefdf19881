# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A step of adversarial variational Bayes in Pyro and in plain PyTorch, and its cost in k."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import harness
import pyro
import pyro.distributions as dist
import torch
from harness import Contestant, Pair, Row
from pyro.infer import SVI
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from pyro_spread import ImplicitDistribution, PriorContrastELBO, concat_sites, two_player
from spread_core.moments import predictive_regret

LEARNING_RATE, BETAS = 2e-4, (0.5, 0.999)
PAIRS = (
    Pair("i", "loss(model, guide)", "ours-module", "hand", 1.15),
    Pair("i", "SVI.step, for comparison", "ours-svi", "hand"),
)


@dataclass(frozen=True)
class Setup:
    """Sizes; all contestants start from the same nets."""

    batch: int = 128
    dim: int = 784
    hidden: int = 300
    latent: int = 8
    noise: int = 16
    moment_draws: int = 32

    def nets(self, seed: int) -> tuple[Encoder, nn.Module, nn.Module]:
        torch.manual_seed(seed)
        decoder = self._mlp(self.latent, self.dim)
        return Encoder(self), decoder, self._mlp(self.dim + self.latent, 1)

    def _mlp(self, num_inputs: int, num_outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(num_inputs, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, num_outputs),
        )

    def data(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.batch, self.dim, generator=generator).round()


class Encoder(nn.Module):
    """What the noise has no part in runs once per datum, however many draws there are."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(setup.dim, setup.hidden), nn.ReLU(), nn.Linear(setup.hidden, setup.hidden)
        )
        self.noise = nn.Linear(setup.noise, setup.hidden)
        self.out = nn.Linear(setup.hidden, setup.latent)

    def forward(self, features: Tensor, eps: Tensor) -> Tensor:
        return self.out(torch.relu(features + self.noise(eps)))


def setup_of(smoke: bool) -> Setup:
    return Setup(8, 16, 8, 2, 3, 4) if smoke else Setup()


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=BETAS, fused=True)


def hand(setup: Setup, seed: int) -> Contestant:
    """Guide and model against a frozen critic, the critic against the same draws, one backward."""
    encoder, decoder, critic = setup.nets(seed)
    optimiser = adam([*encoder.parameters(), *decoder.parameters(), *critic.parameters()])
    x, num = setup.data(seed), setup.moment_draws
    nu, spread = num - 1, 1 + 1 / num
    constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)
    constant += predictive_regret(num) - 0.5 * math.log(nu * math.pi * spread)
    half = torch.full((setup.batch, setup.latent), nu / 2)

    def run(steps: int) -> float:
        for _ in range(steps):
            optimiser.zero_grad()
            features = encoder.body(x)
            z = encoder(features, torch.randn(setup.batch, setup.noise))
            with torch.no_grad():
                draws = encoder(features, torch.randn(num, setup.batch, setup.noise))
                variance, mean = torch.var_mean(draws, 0)
                scale = variance.sqrt()
                chi2 = 2 * torch._standard_gamma(half)
                other = torch.randn_like(mean) * (spread * nu / chi2).sqrt()
            u = (z - mean) / scale
            critic.requires_grad_(False)
            logit = critic(torch.cat([x, u], -1)).squeeze(-1)
            critic.requires_grad_(True)
            blurred = u.detach() + spread * (u - u.detach())
            log_r = constant - (nu + 1) / 2 * torch.log1p(blurred.square() / (nu * spread))
            log_q = logit + (log_r - scale.log()).sum(-1)
            log_p = -(z.square() / 2 + math.log(2 * math.pi) / 2).sum(-1)
            minus_log_likelihood = binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
            value = minus_log_likelihood + (log_q - log_p).sum()
            guide_logit = critic(torch.cat([x, u.detach()], -1))
            other_logit = critic(torch.cat([x, other], -1))
            learnt = (softplus(-guide_logit).mean() + softplus(other_logit).mean()) / 2
            (value + learnt).backward()
            optimiser.step()
        return value.item()

    return run


class Model(nn.Module):
    def __init__(self, decoder: nn.Module, latent: int, name: str) -> None:
        super().__init__()
        self.decoder, self.latent, self.name = decoder, latent, name

    def forward(self, x: Tensor) -> None:
        if self.name:
            pyro.module(f"{self.name}_decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self, encoder: Encoder, setup: Setup, name: str) -> None:
        super().__init__()
        self.encoder, self.setup, self.name = encoder, setup, name

    def forward(self, x: Tensor) -> None:
        if self.name:
            pyro.module(f"{self.name}_encoder", self.encoder)
        noise = dist.Normal(x.new_zeros(self.setup.noise), 1.0).to_event(1)
        encode = functools.partial(self.encoder, self.encoder.body(x))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", ImplicitDistribution(encode, noise, (self.setup.latent,)))


def ours_module(setup: Setup, seed: int, is_compiled: bool = False) -> Contestant:
    """``loss(model, guide)`` as a torch module, with one fused Adam for both players."""
    encoder, decoder, critic = setup.nets(seed)
    loss = PriorContrastELBO(concat_sites(critic, "x", "z"), num_moment_draws=setup.moment_draws)
    module = loss(Model(decoder, setup.latent, ""), Guide(encoder, setup, ""))
    if is_compiled:
        module.compile()
    optimiser = adam(module.parameters())
    x = setup.data(seed)

    def run(steps: int) -> float:
        for _ in range(steps):
            optimiser.zero_grad()
            value = module(x)
            value.backward()
            optimiser.step()
        return value.item()

    return run


def ours_svi(setup: Setup, seed: int, critic_steps: int = 1) -> Contestant:
    """``SVI.step`` with two ``pyro.optim.Adam``; a step is one of the guide."""
    encoder, decoder, critic = setup.nets(seed)
    name = f"contrast_{critic_steps}"
    loss = PriorContrastELBO(
        concat_sites(critic, "x", "z"), num_moment_draws=setup.moment_draws, name=name
    )
    options = {"lr": LEARNING_RATE, "betas": BETAS}
    players = pyro.optim.Adam(options), pyro.optim.Adam(options)
    optim = two_player(*players, critic_steps, name=name)
    svi = SVI(Model(decoder, setup.latent, name), Guide(encoder, setup, name), optim, loss)
    x = setup.data(seed)

    def run(steps: int) -> float:
        for _ in range(steps * critic_steps):
            value = svi.step(x)
        return value

    return run


def rows(parts: set[str], smoke: bool, seed: int) -> list[Row]:
    """Parts i and j."""
    setup = setup_of(smoke)
    repetitions, steps = (3, 1) if smoke else (100, 5)
    found: list[Row] = []
    if "i" in parts:
        for validate in (True, False):
            pyro.clear_param_store()
            pyro.enable_validation(validate)
            contestants = {
                "hand": hand(setup, seed),
                "ours-module": ours_module(setup, seed),
                "ours-svi": ours_svi(setup, seed),
            }
            if not smoke:
                harness.check_similar({name: run(1) for name, run in contestants.items()})
            times = harness.interleave(contestants, repetitions, steps, seed)
            case = f"avb, validation {'on (default)' if validate else 'off'}"
            found += harness.ratio_rows("pyro", case, times, PAIRS)
        pyro.enable_validation(True)
    if "j" in parts:
        pyro.clear_param_store()
        each = {f"k = {k}": ours_svi(setup, seed, k) for k in harness.CRITIC_STEPS}
        times = harness.interleave(each, 3 if smoke else 30, 1 if smoke else 2, seed)
        found += harness.ratio_rows("pyro", "avb, a step of the guide", times, harness.COST_IN_K)
    return found
