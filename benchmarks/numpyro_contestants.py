# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The JAX and NumPyro programs that are compared; all do the same mathematics on the same nets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array, lax, random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO

from numpyro_spread import GaussianNoise, SpreadELBO

SCALE = 0.3
LEARNING_RATE = 1e-3


class MLP(nn.Module):
    """One hidden layer."""

    hidden: int
    out: int
    squash: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(self.out)(nn.relu(nn.Dense(self.hidden)(x)))
        return nn.sigmoid(x) if self.squash else x


def _to_depth(x: Array) -> Array:
    """Blocks of 2 x 2 pixels into channels."""
    n, h, w, c = x.shape
    blocks = x.reshape((n, h // 2, 2, w // 2, 2, c)).transpose((0, 1, 3, 2, 4, 5))
    return blocks.reshape((n, h // 2, w // 2, 4 * c))


def _to_space(x: Array) -> Array:
    """Channels into blocks of 2 x 2 pixels."""
    n, h, w, c = x.shape
    blocks = x.reshape((n, h, w, 2, 2, c // 4)).transpose((0, 1, 3, 2, 4, 5))
    return blocks.reshape((n, 2 * h, 2 * w, c // 4))


class ConvEncoder(nn.Module):
    """Three times: halve the image into channels, then a 3 x 3 convolution."""

    width: int
    out: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for factor in (1, 2, 4):
            x = nn.relu(nn.Conv(factor * self.width, (3, 3))(_to_depth(x)))
        return nn.Dense(self.out)(x.reshape((x.shape[0], -1)))


class ConvDecoder(nn.Module):
    """The mirror image of :class:`ConvEncoder`."""

    width: int
    size: int

    @nn.compact
    def __call__(self, z: Array) -> Array:
        side, width = self.size // 8, self.width
        x = nn.relu(nn.Dense(4 * width * side**2)(z))
        x = x.reshape((z.shape[0], side, side, 4 * width))
        for channels in (2 * width, width):
            x = nn.relu(_to_space(nn.Conv(4 * channels, (3, 3))(x)))
        return nn.sigmoid(_to_space(nn.Conv(4 * 3, (3, 3))(x)))


@dataclass(frozen=True)
class Setup:
    """Nets, data and sizes of one comparison; images are height x width x channels, as in flax."""

    event_shape: tuple[int, ...]
    latent: int
    encoder: nn.Module
    decoder: nn.Module
    batch: int

    def data(self, seed: int, steps: int) -> Array:
        return random.uniform(random.key(seed), (steps, self.batch, *self.event_shape))


def mlp(batch: int, dim: int = 784, hidden: int = 400, latent: int = 20) -> Setup:
    encoder, decoder = MLP(hidden, 2 * latent), MLP(hidden, dim, squash=True)
    return Setup((dim,), latent, encoder, decoder, batch)


def conv(batch: int, size: int = 64, width: int = 16, latent: int = 32) -> Setup:
    encoder, decoder = ConvEncoder(width, 2 * latent), ConvDecoder(width, size)
    return Setup((size, size, 3), latent, encoder, decoder, batch)


def _model_and_guide(
    setup: Setup, likelihood: Callable[[Array], dist.Distribution]
) -> tuple[Callable[[Array], None], Callable[[Array], None]]:
    def model(x: Array) -> None:
        decoder = flax_module("decoder", setup.decoder, input_shape=(1, setup.latent))
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(setup.latent), 1.0).to_event(1))
            numpyro.sample("x", likelihood(decoder(z)), obs=x)

    def guide(x: Array) -> None:
        encoder = flax_module("encoder", setup.encoder, input_shape=(1, *setup.event_shape))
        with numpyro.plate("data", x.shape[0]):
            loc, log_scale = jnp.split(encoder(x), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return model, guide


def _delta(value: Array) -> dist.Distribution:
    return dist.Delta(value, event_dim=value.ndim - 1)


def _normal(value: Array) -> dist.Distribution:
    return dist.Normal(value, SCALE).to_event(value.ndim - 1)


# A first state, and what one step of a loop does with it and a batch, as ``lax.scan`` wants it.
Step = Callable[[Any, Array], tuple[Any, Array]]


def _spread(setup: Setup, seed: int, x: Array) -> tuple[Any, Step]:
    model, guide = _model_and_guide(setup, _delta)
    loss = SpreadELBO({"x": GaussianNoise(SCALE)})
    svi = SVI(model, loss.register(model, guide), optax.adam(LEARNING_RATE), loss)
    return svi.init(random.key(seed), x), svi.update


def _stock(setup: Setup, seed: int, x: Array) -> tuple[Any, Step]:
    model, guide = _model_and_guide(setup, _normal)
    svi = SVI(model, guide, optax.adam(LEARNING_RATE), Trace_ELBO())

    def step(state: Any, x: Array) -> tuple[Any, Array]:
        rng_key, svi_state = state
        rng_key, noise_key = random.split(rng_key)
        y = x + SCALE * random.normal(noise_key, x.shape)
        svi_state, value = svi.update(svi_state, y)
        return (rng_key, svi_state), value

    return (random.key(seed + 1), svi.init(random.key(seed), x)), step


def _hand(setup: Setup, seed: int, x: Array) -> tuple[Any, Step]:
    """
    The training loop that a JAX user writes.

    As ``Trace_ELBO`` does it, KL[q || p] is estimated by log q(z|y) - log p(z) at the sampled z, so
    that ratios to it compare programs and not estimators.
    """
    optimiser = optax.adam(LEARNING_RATE)
    encoder_key, decoder_key, rng_key = random.split(random.key(seed), 3)
    params = {
        "encoder": setup.encoder.init(encoder_key, x[:1]),
        "decoder": setup.decoder.init(decoder_key, jnp.zeros((1, setup.latent))),
    }
    constant = 0.5 * x.size * math.log(2 * math.pi * SCALE**2)

    def negative_elbo(params: Any, rng_key: Array, x: Array) -> Array:
        noise_key, latent_key = random.split(rng_key)
        y = x + SCALE * random.normal(noise_key, x.shape)
        output = setup.encoder.apply(params["encoder"], y)
        loc, log_scale = jnp.split(output, 2, axis=-1)
        eps = random.normal(latent_key, loc.shape)
        z = loc + jnp.exp(log_scale) * eps
        residual = y - setup.decoder.apply(params["decoder"], z)
        kl = 0.5 * (jnp.square(z) - jnp.square(eps)).sum() - log_scale.sum()
        return jnp.square(residual).sum() / (2 * SCALE**2) + constant + kl

    def step(state: Any, x: Array) -> tuple[Any, Array]:
        rng_key, params, moments = state
        rng_key, step_key = random.split(rng_key)
        value, grads = jax.value_and_grad(negative_elbo)(params, step_key, x)
        updates, moments = optimiser.update(grads, moments, params)
        return (rng_key, optax.apply_updates(params, updates), moments), value

    return (rng_key, params, optimiser.init(params)), step


_PROGRAMS = {"spread": _spread, "stock": _stock, "hand": _hand}


class Scanned:
    """
    A contestant: ``steps`` steps under one jitted ``lax.scan``, whose state is updated in place.

    :param name: "spread", "stock" (data noised outside) or "hand".
    :param steps: steps of a call.
    """

    def __init__(self, name: str, setup: Setup, seed: int, steps: int) -> None:
        self.xs = setup.data(seed, steps)
        self.state, step = _PROGRAMS[name](setup, seed, self.xs[0])

        # XLA runs convolutions inside of a loop forty times slower on a CPU: leave none there.
        unroll = len(setup.event_shape) > 1

        def loop(state: Any, xs: Array) -> tuple[Any, Array]:
            if unroll and steps == 1:  # which lax.scan does not unroll
                state, value = step(state, xs[0])
                return state, value[None]
            return lax.scan(step, state, xs, unroll=unroll)

        lowered = jax.jit(loop, donate_argnums=0).lower(self.state, self.xs)
        self.compiled = lowered.compile()

    def __call__(self, steps: int) -> float:
        self.state, losses = self.compiled(self.state, self.xs)
        return float(losses[-1])

    def compiled_memory(self) -> float:
        """What XLA reserves for a call, in MiB: arguments, temporaries, outputs not in place."""
        return compiled_memory(self.compiled)


def compiled_memory(compiled: Any) -> float:
    """Memory of a compiled function in MiB; donated arguments are counted once."""
    stats = compiled.memory_analysis()
    total = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return float(total - stats.alias_size_in_bytes) / 2**20


def make(name: str, setup: Setup, seed: int, steps: int) -> Scanned:
    """The contestant called ``name``; all see the same data."""
    return Scanned(name, setup, seed, steps)
