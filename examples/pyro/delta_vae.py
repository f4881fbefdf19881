# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Delta-VAE: a generator without a likelihood, trained by changing the loss
=========================================================================

The model's likelihood is a point mass at the decoder's output, so that the stock ``Trace_ELBO`` is
infinite. With ``SpreadELBO`` in its place (Zhang et al., https://arxiv.org/abs/1811.08968) the same
model, guide and SVI train. The same nets are also trained as a plain VAE, with a Normal likelihood
of learned scale, and the samples of both are compared with held-out images.

    python examples/pyro/delta_vae.py --output delta-vae
    python examples/pyro/delta_vae.py --dataset mnist --data-dir DIR
    python examples/pyro/delta_vae.py --noise learned
    python examples/pyro/delta_vae.py --compile
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import Adam, LambdaLR
from studies.comparison import (
    Fit,
    compare,
    learning_rate_factor,
    minibatches,
    parse_args,
)
from torch import nn
from tqdm import trange

from pyro_spread import (
    GaussianNoise,
    LearnedNoise,
    SpreadELBO,
    SpreadNoise,
    compiled,
    learned,
)
from spread_analysis.datasets import Dataset


def mlp(num_inputs: int, num_hidden: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, num_hidden),
        nn.ReLU(),
        nn.Linear(num_hidden, num_hidden),
        nn.ReLU(),
        nn.Linear(num_hidden, num_outputs),
    )


class DeltaVAE(nn.Module):
    """
    An ordinary deep generative model, except for its likelihood: x is exactly the decoder's output.
    """

    def __init__(self, image_size: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = mlp(image_size, hidden_dim, 2 * latent_dim)
        self.decoder = nn.Sequential(mlp(latent_dim, hidden_dim, image_size), nn.Sigmoid())

    def likelihood(self, image: torch.Tensor) -> dist.TorchDistribution:
        return dist.Delta(image, event_dim=1)

    def model(self, x: torch.Tensor | None, num_images: int = 0) -> torch.Tensor:
        pyro.module("decoder", self.decoder)
        prior = next(self.decoder.parameters()).new_zeros(self.latent_dim)
        with pyro.plate("data", num_images if x is None else x.shape[0]):
            z = pyro.sample("z", dist.Normal(prior, 1.0).to_event(1))
            image = pyro.deterministic("image", self.decoder(z), event_dim=1)
            return pyro.sample("x", self.likelihood(image), obs=x)

    def guide(self, x: torch.Tensor, num_images: int = 0) -> torch.Tensor:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            return pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class PlainVAE(DeltaVAE):
    """The same nets with a likelihood that has a density."""

    def likelihood(self, image: torch.Tensor) -> dist.TorchDistribution:
        scale = pyro.param("scale", image.new_tensor(0.3), constraint=dist.constraints.positive)
        return dist.Normal(image, scale).to_event(1)


def make_noise(
    args: argparse.Namespace, size: int, device: torch.device
) -> SpreadNoise | LearnedNoise:
    noise = GaussianNoise(args.noise_scale)
    if args.noise == "learned":
        scales = torch.full((size,), args.noise_scale, device=device)
        return learned(GaussianNoise(scales), constraint="trace", least=0.5)
    if args.noise == "learned-mean":
        layers = nn.Linear(size, args.hidden_dim), nn.Tanh(), nn.Linear(args.hidden_dim, size)
        return learned(noise, mean=nn.Sequential(*layers).to(device))
    return noise


def fit_model(
    args: argparse.Namespace, name: str, seed: int, dataset: Dataset, num_samples: int
) -> Fit:
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    device = torch.device("cuda" if args.cuda else "cpu")
    train = torch.from_numpy(dataset.train_images).flatten(1).to(device)
    test = torch.from_numpy(dataset.test_images).flatten(1).to(device)

    vae_class = DeltaVAE if name == "spread" else PlainVAE
    vae = vae_class(dataset.image_size, args.latent_dim, args.hidden_dim).to(device)
    noise = make_noise(args, dataset.image_size, device)
    # The whole difference: the loss.
    loss = SpreadELBO({"x": noise}) if name == "spread" else Trace_ELBO()
    if args.compile:
        loss = compiled(loss)
    optim = LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": args.learning_rate},
            "lr_lambda": lambda epoch: learning_rate_factor(epoch / args.num_epochs),
        }
    )
    svi = SVI(vae.model, vae.guide, optim, loss)

    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    losses = []
    with trange(args.num_epochs, desc=f"pyro {name}, seed {seed}", mininterval=1) as progress:
        for _ in progress:
            batches = torch.from_numpy(minibatches(len(train), args.batch_size, rng)).to(device)
            total = sum(svi.step(train[batch]) for batch in batches)
            optim.step()
            losses.append(total / batches.numel())
            progress.set_postfix(loss=f"{losses[-1]:.2f}", refresh=False)
    seconds = time.perf_counter() - start

    with torch.no_grad():
        draws = Predictive(vae.model, num_samples=1)(None, num_samples)
        shown = test[:10]
        kernel = noise.kernel() if isinstance(noise, LearnedNoise) else noise
        inputs = kernel(shown, event_dim=1).sample() if name == "spread" else shown
        reconstructions = vae.decoder(vae.encoder(inputs).chunk(2, -1)[0])
        return Fit(
            losses=losses,
            stock_loss=Trace_ELBO().loss(vae.model, vae.guide, test) / len(test),
            spread_loss=svi.evaluate_loss(test) / len(test) if name == "spread" else None,
            samples=draws["image"][0].cpu().numpy(),
            noisy_samples=None if name == "spread" else draws["x"][0].cpu().numpy(),
            inputs=inputs.cpu().numpy(),
            reconstructions=reconstructions.cpu().numpy(),
            seconds=seconds,
        )


def stock_loss_before_training(args: argparse.Namespace) -> float:
    """The value that SVI silently reports with the stock loss."""
    vae = DeltaVAE(64, args.latent_dim, args.hidden_dim)
    svi = SVI(vae.model, vae.guide, Adam({"lr": args.learning_rate}), Trace_ELBO())
    return svi.step(torch.rand(args.batch_size, 64))


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.num_threads)
    stock = stock_loss_before_training(args)
    print(f"SVI(..., loss=Trace_ELBO()).step(x) gives {stock}: nothing to train on.")
    assert math.isinf(stock)
    compare("pyro", args, lambda *which: fit_model(args, *which))


if __name__ == "__main__":
    main(parse_args("pyro", "Train a delta-VAE with SpreadELBO beside a plain VAE, in Pyro."))
