# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Code that the files of the zoo share in Pyro: nets, and the loop around ``svi.step``."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.elbo import ELBO
from pyro.optim import Adam, LambdaLR, PyroLRScheduler, PyroOptim
from studies.gan_study import as_images, as_signed
from studies.zoo import (
    MAX_COUNT,
    Settings,
    Trained,
    ZooData,
    batches,
    learning_rate_factor,
)
from torch import nn

from pyro_spread import two_player
from pyro_spread.ratio import MLPCritic

# Images that are evaluated at a time: what nets compute for thousands of large ones is gigabytes.
CHUNK = 500
# The last image to settle decides how many passes are made for all that are drawn with it.
DRAWN_AT_ONCE = 100


def mlp(num_inputs: int, hidden_dim: int, num_outputs: int) -> nn.Sequential:
    """Two hidden layers: generator, decoder and encoder of all systems."""
    return nn.Sequential(
        nn.Linear(num_inputs, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, num_outputs),
    )


def critic_net(settings: Settings) -> MLPCritic:
    """As wide and deep as the generator."""
    return MLPCritic([settings.hidden_dim] * 2)


def standard_normal(num: int) -> dist.TorchDistribution:
    """The prior of all systems with a generator, and the noise of implicit distributions."""
    return dist.Normal(torch.zeros(num), 1.0).to_event(1)


def start(settings: Settings) -> None:
    """Forget the system before, so that a file gives the same alone and after others."""
    pyro.clear_param_store()
    pyro.set_rng_seed(settings.seed)


def no_guide(*args: torch.Tensor | int | None) -> None:
    """Empty guide, for models without latents and for those trained by comparing samples."""


def adam(
    settings: Settings,
    *,
    pace: float = 1.0,
    num_steps: int | None = None,
    b1: float = 0.9,
    weight_decay: float = 0.0,
) -> PyroLRScheduler:
    """
    Adam whose rate falls to zero over the second half of the steps.

    :param pace: the rate at first, of the row's.
    """
    steps = num_steps or settings.num_steps
    options = {
        "lr": pace * settings.learning_rate,
        "betas": (b1, 0.999),
        "weight_decay": weight_decay,
    }
    return LambdaLR(
        {
            "optimizer": torch.optim.AdamW,
            "optim_args": options,
            "lr_lambda": lambda step: learning_rate_factor(step / steps),
        }
    )


def adversaries(settings: Settings, critic_steps: int = 1) -> PyroOptim:
    """One optimiser for both players: constant learning rates and little momentum."""
    options = {"lr": settings.learning_rate, "betas": (0.5, 0.999)}
    return two_player(Adam(options), Adam(options), critic_steps)


def fit(
    settings: Settings,
    svi: SVI,
    *arrays: np.ndarray | torch.Tensor,
    num_steps: int | None = None,
    change: Callable[..., Iterator[torch.Tensor]] | None = None,
) -> float:
    """
    Train on mini-batches of the arrays, and return the seconds.

    :param change: what is done to the arrays of a mini-batch before every step.
    """
    began = time.perf_counter()
    tensors = [torch.as_tensor(array) for array in arrays]
    steps = num_steps or settings.num_steps
    for chunk in batches(len(tensors[0]), settings.batch_size, steps, settings.seed):
        for batch in torch.as_tensor(chunk):
            inputs = (tensor[batch] for tensor in tensors)
            svi.step(*(change(*inputs) if change else inputs))
            if hasattr(svi.optim, "step"):  # the next learning rate
                svi.optim.step()
    return time.perf_counter() - began


@torch.no_grad()
def mean_bound(
    svi: SVI, *arrays: np.ndarray | torch.Tensor, num_draws: int = 10, **options: Any
) -> float:
    """
    The loss on held-out images as a bound on log p(x), in nats per image.

    :param options: keyword arguments of model and guide.
    """
    chunks = [torch.as_tensor(array).split(CHUNK) for array in arrays]
    losses = [
        svi.evaluate_loss(*chunk, **options)
        for chunk in zip(*chunks, strict=True)
        for _ in range(num_draws)
    ]
    return -float(np.sum(losses)) / num_draws / len(arrays[0])


@torch.no_grad()
def draw(model: Callable[..., None], *args: torch.Tensor | int | None) -> np.ndarray:
    """Images of a model that takes no data: x at draws of the prior."""
    return Predictive(model, num_samples=1)(*args)["x"][0].cpu().numpy()


def draw_counts(model: Callable[..., None], *args: torch.Tensor | int | None) -> np.ndarray:
    """Draw whole-number pixels from a model."""
    return draw(model, *args) / MAX_COUNT


@torch.no_grad()
def draw_pixels(net: nn.Module, num_images: int, num_pixels: int) -> torch.Tensor:
    """
    Draw images from a net that gives each pixel, or code, a categorical distribution.

    A draw is the level of which the log-probability and Gumbel noise have the largest sum. All
    pixels are drawn in one pass, and again with the same noise until none changes: after i passes
    the first i are as if drawn one after the other, and in the end all are. Most settle much sooner
    (Wiggers, Hoogeboom 2020, arXiv:2002.09928).
    """
    chunks = []
    for size in map(len, torch.empty(num_images).split(DRAWN_AT_ONCE)):
        x = torch.full((size, num_pixels), -1.0)
        new = torch.zeros_like(x)
        noise = -torch.empty_like(net(new).base_dist.logits).exponential_().log()
        while not torch.equal(x, new):
            x, new = new, (net(new).base_dist.logits + noise).argmax(-1).to(new)
        chunks.append(new)
    return torch.cat(chunks)


def autoregressive_svi(settings: Settings, net: nn.Module, weight_decay: float = 0.0) -> SVI:
    """
    Maximum likelihood of rows of whole numbers x: its loss is minus log p(x), exactly.

    :param net: from x to the distribution of all its numbers, of each given those before it.
    """

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", net(x), obs=x)

    return SVI(model, no_guide, adam(settings, weight_decay=weight_decay), Trace_ELBO())


def train_pixels(
    data: ZooData,
    settings: Settings,
    net: nn.Module,
    *,
    weight_decay: float = 0.0,
    draw: Callable[[int, int], torch.Tensor] | None = None,
) -> Trained:
    """
    An autoregressive model of whole-number pixels, in reading order.

    :param net: as of :func:`autoregressive_svi`.
    :param draw: from numbers of images and of pixels to images, if there is a faster way than a
        pass of the net for each pixel.
    """
    svi = autoregressive_svi(settings, net, weight_decay)
    seconds = fit(settings, svi, data.train_counts)
    draw = draw or functools.partial(draw_pixels, net)
    return Trained(
        samples=draw(settings.num_samples, data.num_pixels).cpu().numpy() / MAX_COUNT,
        seconds=seconds,
        log_likelihood=mean_bound(svi, data.test_counts, num_draws=1),
    )


def train_generator(
    data: ZooData,
    settings: Settings,
    make_loss: Callable[[nn.Module], ELBO],
    critic_steps: int = 1,
) -> Trained:
    """
    A generator without a likelihood, x = g(z), trained by comparing its draws with data.

    GANs, JS_pi, Wasserstein and MMD have this model, nets and loop in common; the loss alone
    differs. Pixels run from -1 to 1.

    :param make_loss: from a critic's net to the loss; it may leave the net alone.
    :param critic_steps: of the critic for one of the generator; 0 if there is no critic.
    """
    start(settings)
    generator = nn.Sequential(
        mlp(settings.latent_dim, settings.hidden_dim, data.num_pixels), nn.Tanh()
    )

    def model(x, num_images=0):
        pyro.module("generator", generator)
        with pyro.plate("data", num_images if x is None else len(x)):
            z = pyro.sample("z", standard_normal(settings.latent_dim))
            pyro.sample("x", dist.Delta(generator(z), event_dim=1), obs=x)

    loss = make_loss(critic_net(settings))
    optim = adversaries(settings, critic_steps) if critic_steps else adam(settings)
    svi = SVI(model, loss.register(model, no_guide), optim, loss)
    updates = settings.num_steps * max(1, critic_steps)
    seconds = fit(settings, svi, as_signed(data.train_images), num_steps=updates)
    return Trained(as_images(draw(model, None, settings.num_samples)), seconds)
