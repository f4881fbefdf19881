# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Delta-VAE: a generator without a likelihood, trained by changing the loss
=========================================================================

The model's likelihood is a point mass at the decoder's output, so that the stock ``Trace_ELBO`` is
infinite. With ``SpreadELBO`` in its place (Zhang et al., https://arxiv.org/abs/1811.08968) the same
model, guide and SVI train. The same nets are also trained as a plain VAE, with a Normal likelihood
of learned scale, and the samples of both are compared with held-out images.

    python examples/numpyro/delta_vae.py --output delta-vae
    python examples/numpyro/delta_vae.py --dataset mnist --data-dir DIR
    python examples/numpyro/delta_vae.py --noise learned
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import linen as nn
from jax import lax, random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.optim import Adam
from studies.comparison import (
    Fit,
    compare,
    learning_rate_factor,
    minibatches,
    num_batches,
    parse_args,
)
from tqdm import trange

from numpyro_spread import GaussianNoise, SpreadELBO, learned
from spread_analysis.datasets import Dataset


class MLP(nn.Module):
    num_hidden: int
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # PyTorch's default, so that both backends start alike.
        dense = functools.partial(
            nn.Dense, kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        )
        for _ in range(2):
            x = nn.relu(dense(self.num_hidden)(x))
        return dense(self.num_outputs)(x)


class DeltaVAE:
    """
    An ordinary deep generative model, except for its likelihood: x is exactly the decoder's output.
    """

    def __init__(self, image_size: int, latent_dim: int, hidden_dim: int) -> None:
        self.image_size, self.latent_dim = image_size, latent_dim
        self.encoder = MLP(hidden_dim, 2 * latent_dim)
        self.decoder = nn.Sequential([MLP(hidden_dim, image_size), nn.sigmoid])

    def likelihood(self, image: jax.Array) -> dist.Distribution:
        return dist.Delta(image, event_dim=1)

    def model(self, x: jax.Array | None, num_images: int = 0) -> jax.Array:
        decoder = flax_module("decoder", self.decoder, input_shape=(self.latent_dim,))
        with numpyro.plate("data", num_images if x is None else x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(self.latent_dim), 1.0).to_event(1))
            image = numpyro.deterministic("image", decoder(z))
            return numpyro.sample("x", self.likelihood(image), obs=x)

    def guide(self, x: jax.Array, num_images: int = 0) -> jax.Array:
        encoder = flax_module("encoder", self.encoder, input_shape=(self.image_size,))
        with numpyro.plate("data", x.shape[0]):
            loc, log_scale = jnp.split(encoder(x), 2, -1)
            return numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    def reconstruct(self, params: dict[str, Any], x: jax.Array) -> jax.Array:
        loc, _ = jnp.split(self.encoder.apply({"params": params["encoder$params"]}, x), 2, -1)
        return self.decoder.apply({"params": params["decoder$params"]}, loc)


class PlainVAE(DeltaVAE):
    """The same nets with a likelihood that has a density."""

    def likelihood(self, image: jax.Array) -> dist.Distribution:
        scale = numpyro.param("scale", 0.3, constraint=dist.constraints.positive)
        return dist.Normal(image, scale).to_event(1)


@functools.cache
def make_svi(
    name: str,
    image_size: int,
    latent_dim: int,
    hidden_dim: int,
    learning_rate: float,
    num_steps: int,
    noise_scale: float,
    kind: str,
) -> tuple[DeltaVAE, SVI, Any]:
    """The model, its SVI and one epoch of it, compiled once for all seeds."""
    vae_class = DeltaVAE if name == "spread" else PlainVAE
    vae = vae_class(image_size, latent_dim, hidden_dim)
    noise = GaussianNoise(noise_scale)
    if kind == "learned":
        scales = jnp.full(image_size, noise_scale)
        noise = learned(GaussianNoise(scales), constraint="trace", least=0.5)
    elif kind == "learned-mean":
        layers = [nn.Dense(hidden_dim), nn.tanh, nn.Dense(image_size)]
        noise = learned(noise, mean=nn.Sequential(layers))
    # The whole difference: the loss.
    loss = SpreadELBO({"x": noise}) if name == "spread" else Trace_ELBO()
    optim = Adam(lambda step: learning_rate * learning_rate_factor(step / num_steps))
    guide = loss.register(vae.model, vae.guide) if name == "spread" else vae.guide
    svi = SVI(vae.model, guide, optim, loss)

    @jax.jit
    def epoch(state: Any, train: jax.Array, batches: jax.Array) -> tuple[Any, jax.Array]:
        state, losses = lax.scan(lambda s, batch: svi.update(s, train[batch]), state, batches)
        return state, losses.sum() / batches.size

    return vae, svi, epoch


def fit_model(
    args: argparse.Namespace, name: str, seed: int, dataset: Dataset, num_samples: int
) -> Fit:
    train = jnp.asarray(dataset.train_images.reshape(-1, dataset.image_size))
    test = jnp.asarray(dataset.test_images.reshape(-1, dataset.image_size))
    init_key, stock_key, draw_key, noise_key = random.split(random.key(seed), 4)

    start = time.perf_counter()
    vae, svi, epoch = make_svi(
        name,
        dataset.image_size,
        args.latent_dim,
        args.hidden_dim,
        args.learning_rate,
        args.num_epochs * num_batches(len(train), args.batch_size),
        args.noise_scale,
        args.noise,
    )
    state = svi.init(init_key, train[: args.batch_size])
    rng = np.random.default_rng(seed)
    losses = []
    with trange(args.num_epochs, desc=f"numpyro {name}, seed {seed}", mininterval=1) as progress:
        for _ in progress:
            state, loss = epoch(state, train, minibatches(len(train), args.batch_size, rng))
            losses.append(float(loss))
            progress.set_postfix(loss=f"{losses[-1]:.2f}", refresh=False)
    seconds = time.perf_counter() - start

    params = svi.get_params(state)
    draws = Predictive(vae.model, params=params, num_samples=1)(draw_key, None, num_samples)
    stock_loss = Trace_ELBO().loss(stock_key, params, vae.model, vae.guide, test)
    spread_loss = float(svi.evaluate(state, test)) / len(test) if name == "spread" else None
    inputs = test[:10]
    if name == "spread":
        kernel = svi.loss.noise["x"]
        if args.noise != "fixed":
            kernel = kernel.kernel(params["noise$x$params"])
        inputs = kernel(inputs, event_dim=1).sample(noise_key)
    return Fit(
        losses=losses,
        stock_loss=float(stock_loss) / len(test),
        spread_loss=spread_loss,
        samples=np.asarray(draws["image"][0]),
        noisy_samples=None if name == "spread" else np.asarray(draws["x"][0]),
        inputs=np.asarray(inputs),
        reconstructions=np.asarray(vae.reconstruct(params, inputs)),
        seconds=seconds,
    )


def stock_loss_before_training(args: argparse.Namespace) -> float:
    """The value that SVI silently reports with the stock loss."""
    vae = DeltaVAE(64, args.latent_dim, args.hidden_dim)
    svi = SVI(vae.model, vae.guide, Adam(args.learning_rate), Trace_ELBO())
    x = random.uniform(random.key(args.seed), (args.batch_size, 64))
    return float(svi.update(svi.init(random.key(args.seed), x), x)[1])


def main(args: argparse.Namespace) -> None:
    numpyro.set_platform(args.device)
    stock = stock_loss_before_training(args)
    print(f"SVI(..., loss=Trace_ELBO()).update(state, x) gives {stock}: nothing to train on.")
    assert np.isinf(stock)
    compare("numpyro", args, lambda *which: fit_model(args, *which))


if __name__ == "__main__":
    main(parse_args("numpyro", "Train a delta-VAE with SpreadELBO beside a plain VAE, in NumPyro."))
