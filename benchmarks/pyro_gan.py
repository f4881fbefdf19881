# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A step of GAN training in Pyro, in plain PyTorch and in pixyz, and the MMD beside a dense one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import harness
import pyro
import pyro.distributions as dist
import torch
from harness import Contestant, Pair, Row
from pyro.infer import SVI
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_spread import MMD, AdversarialDivergence, GaussianKernel, JSPi, concat_sites, two_player

LEARNING_RATE, BETAS = 2e-4, (0.5, 0.999)
PAIRS = (
    Pair("f", "loss(model, guide)", "ours-module", "hand", 0.90),
    Pair("f", "loss(model, guide)", "ours-module", "pixyz", 0.70),
    Pair("f", "SVI.step, for comparison", "ours-svi", "hand"),
    Pair("f", "two passes, for comparison", "ours-two-pass", "hand"),
    Pair("f", "critic frozen, for comparison", "hand-frozen", "hand"),
    Pair("f", "pixyz, for comparison", "pixyz", "hand"),
)


@dataclass(frozen=True)
class Setup:
    """Sizes of nets and batch; all contestants start from the same nets."""

    batch: int
    dim: int
    hidden: int
    latent: int

    def nets(self, seed: int) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(seed)
        generator = nn.Sequential(*self._layers(self.latent, self.dim), nn.Sigmoid())
        return generator, nn.Sequential(*self._layers(self.dim, 1))

    def _layers(self, num_inputs: int, num_outputs: int) -> list[nn.Module]:
        return [
            nn.Linear(num_inputs, self.hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(self.hidden, self.hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(self.hidden, num_outputs),
        ]

    def data(self, seed: int) -> Tensor:
        return torch.rand(self.batch, self.dim, generator=torch.Generator().manual_seed(seed))


def setup_of(smoke: bool) -> Setup:
    return Setup(8, 16, 8, 2) if smoke else Setup(256, 784, 512, 64)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=BETAS, fused=True)


def hand(setup: Setup, seed: int, freeze: bool = False) -> Contestant:
    """The usual loop: critic step on detached draws, then generator step through the critic."""
    generator, critic = setup.nets(seed)
    generator_optimiser, critic_optimiser = adam(generator.parameters()), adam(critic.parameters())
    x = setup.data(seed)
    real, fake = torch.ones(setup.batch, 1), torch.zeros(setup.batch, 1)
    cross_entropy = binary_cross_entropy_with_logits

    def run(steps: int) -> float:
        for _ in range(steps):
            draws = generator(torch.randn(setup.batch, setup.latent))
            critic_optimiser.zero_grad()
            value = cross_entropy(critic(x), real) + cross_entropy(critic(draws.detach()), fake)
            value.backward()
            critic_optimiser.step()
            generator_optimiser.zero_grad()
            critic.requires_grad_(not freeze)
            (-cross_entropy(critic(draws), fake)).backward()
            critic.requires_grad_(True)
            generator_optimiser.step()
        return value.item()

    return run


class Model(nn.Module):
    def __init__(self, generator: nn.Module, latent: int, name: str) -> None:
        super().__init__()
        self.generator, self.latent, self.name = generator, latent, name

    def forward(self, x: Tensor) -> None:
        if self.name:
            pyro.module(self.name, self.generator)
        with pyro.plate("data", x.shape[0]):
            prior = dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Delta(self.generator(z), event_dim=1), obs=x)


class Guide(nn.Module):
    def forward(self, x: Tensor) -> None:
        pass


def ours_module(
    setup: Setup, seed: int, update: str | None = None, is_compiled: bool = False
) -> Contestant:
    """``loss(model, guide)`` as a torch module, with one fused Adam for both players."""
    generator, critic = setup.nets(seed)
    loss = AdversarialDivergence(concat_sites(critic, "x"), JSPi(0.5), update=update)
    module = loss(Model(generator, setup.latent, ""), Guide())
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


def ours_svi(setup: Setup, seed: int) -> Contestant:
    """``SVI.step`` with two ``pyro.optim.Adam``."""
    generator, critic = setup.nets(seed)
    loss = AdversarialDivergence(concat_sites(critic, "x"), JSPi(0.5), name="svi_critic")
    options = {"lr": LEARNING_RATE, "betas": BETAS}
    players = pyro.optim.Adam(options), pyro.optim.Adam(options)
    optim = two_player(*players, name="svi_critic")
    svi = SVI(Model(generator, setup.latent, "svi_generator"), Guide(), optim, loss)
    x = setup.data(seed)

    def run(steps: int) -> float:
        for _ in range(steps):
            value = svi.step(x)
        return value

    return run


def pixyz(setup: Setup, seed: int) -> Contestant:
    """``pixyz.models.GAN`` on the same nets."""
    from pixyz.distributions import Deterministic, Normal
    from pixyz.models import GAN

    nets = setup.nets(seed)

    class Generator(Deterministic):
        def __init__(self) -> None:
            super().__init__(var=["x"], cond_var=["z"], name="p")
            self.model = nets[0]

        def forward(self, z: Tensor) -> dict[str, Tensor]:
            return {"x": self.model(z)}

    class Discriminator(Deterministic):
        def __init__(self) -> None:
            super().__init__(var=["t"], cond_var=["x"], name="d")
            self.model = nets[1]

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"t": torch.sigmoid(self.model(x))}

    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    shape = [setup.latent]
    prior = Normal(loc=zero, scale=one, var=["z"], features_shape=shape, name="prior")
    options = {"lr": LEARNING_RATE, "betas": BETAS, "fused": True}
    marginal = (Generator() * prior).marginalize_var("z")
    gan = GAN(marginal, Discriminator(), optimizer_params=options, d_optimizer_params=options)
    x = setup.data(seed)

    def run(steps: int) -> float:
        for _ in range(steps):
            value, _ = gan.train({"x": x})
        return value.item()

    return run


def contestants(setup: Setup, seed: int) -> dict[str, Contestant]:
    found: dict[str, Contestant] = {
        "hand": hand(setup, seed),
        "hand-frozen": hand(setup, seed, freeze=True),
        "ours-module": ours_module(setup, seed),
        "ours-two-pass": ours_module(setup, seed, "two_pass"),
        "ours-svi": ours_svi(setup, seed),
    }
    # Only this comparison needs it: `make bench` installs it, the tests do without.
    if importlib.util.find_spec("pixyz") is not None:
        found["pixyz"] = pixyz(setup, seed)
    return found


def step_ratios(smoke: bool, seed: int) -> list[Row]:
    """Part f."""
    pyro.clear_param_store()
    setup = setup_of(smoke)
    found = contestants(setup, seed)
    pairs = [pair for pair in PAIRS if {pair.numerator, pair.denominator} <= set(found)]
    repetitions, steps = (3, 1) if smoke else (60, 5)
    rows = []
    for validate in (True, False):
        pyro.enable_validation(validate)
        times = harness.interleave(found, repetitions, steps, seed)
        case = f"gan, validation {'on (default)' if validate else 'off'}"
        rows += harness.ratio_rows("pyro", case, times, pairs)
    pyro.enable_validation(True)
    return rows


def dense_mmd2(x: Tensor, y: Tensor, bandwidths: tuple[float, ...]) -> Tensor:
    """What one writes without thinking of memory: three full kernel matrices."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = torch.cdist(a, b).square()
        return torch.stack([torch.exp(-squared / (2 * s**2)) for s in bandwidths]).mean(0)

    def off_diagonal_mean(matrix: Tensor) -> Tensor:
        n = len(matrix)
        return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))

    within = off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y))
    return within - 2 * kernel(x, y).mean()


def mmd(smoke: bool, seed: int, peak: Callable[[Contestant], float]) -> list[Row]:
    """Part h: time and memory of value and gradient in the model's parameters."""
    rows = []
    dim, bandwidths = (4, (1.0, 2.0)) if smoke else (64, (4.0, 8.0, 16.0))
    for batch in (16, 32) if smoke else (1000, 4000):
        torch.manual_seed(seed)
        x, base = torch.randn(batch, dim), torch.randn(batch, dim)
        net = nn.Linear(dim, dim)
        loss = MMD(GaussianKernel(bandwidths))

        def model(x: Tensor, base: Tensor, net: nn.Module = net) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Delta(net(base), event_dim=1), obs=x)

        def ours(
            steps: int,
            loss: Any = loss,
            model: Any = model,
            inputs: tuple[Tensor, Tensor] = (x, base),
        ) -> float:
            for _ in range(steps):
                value = loss.differentiable_loss(model, None, *inputs)
                value.backward()
            return value.item()

        def dense(
            steps: int, net: nn.Module = net, inputs: tuple[Tensor, Tensor] = (x, base)
        ) -> float:
            for _ in range(steps):
                value = dense_mmd2(inputs[0], net(inputs[1]), bandwidths)
                value.backward()
            return value.item()

        both: Mapping[str, Contestant] = {"ours": ours, "dense": dense}
        values = {name: run(1) for name, run in both.items()}
        if abs(values["ours"] - values["dense"]) > 1e-5:
            raise AssertionError(f"the contestants do not compute the same thing: {values}")
        times = harness.interleave(both, 3 if smoke or batch > 1000 else 15, 1, seed, warmup=1)
        case = f"MMD, batch {batch}, {dim} dims, {len(bandwidths)} bandwidths"
        pairs = (Pair("h", "value and gradient", "ours", "dense"),)
        rows += harness.ratio_rows("pyro", case, times, pairs)
        for name, run in both.items():
            what = f"{name}: tensors alive in a step"
            rows.append(harness.row("h", "pyro", case, what, "MiB", peak(run)))
    return rows
