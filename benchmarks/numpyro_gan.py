# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A step of GAN training in NumPyro and in plain JAX, and the MMD beside a dense one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen as nn
from harness import Contestant, Pair, Row
from jax import Array, lax, random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI

from numpyro_spread import (
    MMD,
    AdversarialDivergence,
    GaussianKernel,
    JSPi,
    concat_sites,
    two_player,
)

PAIRS = (
    Pair("g", "svi.update under scan", "ours", "hand", 1.0),
    Pair("g", "two passes, for comparison", "ours-two-pass", "hand"),
)
Step = Callable[[Any, Array], tuple[Any, Array]]


class MLP(nn.Module):
    hidden: int
    num_outputs: int
    squash: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(2):
            x = nn.leaky_relu(nn.Dense(self.hidden)(x), 0.2)
        x = nn.Dense(self.num_outputs)(x)
        return nn.sigmoid(x) if self.squash else x


def adam() -> optax.GradientTransformation:
    return optax.adam(2e-4, b1=0.5)


def ours(batch: int, dim: int, hidden: int, latent: int, update: str | None = None) -> Any:
    def model(x: Array) -> None:
        generator = flax_module("generator", MLP(hidden, dim, True), input_shape=(latent,))
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            numpyro.sample("x", dist.Delta(generator(z), event_dim=1), obs=x)

    loss = AdversarialDivergence(concat_sites(MLP(hidden, 1), "x"), JSPi(0.5), update=update)
    svi = SVI(model, loss.register(model, None), two_player(adam(), adam()), loss)
    return svi.init(random.key(0), jnp.zeros((batch, dim))), svi.update


def hand(batch: int, dim: int, hidden: int, latent: int) -> Any:
    """The usual loop: critic step on fixed draws, then generator step through the new critic."""
    generator, critic = MLP(hidden, dim, True), MLP(hidden, 1)
    keys = random.split(random.key(0), 3)
    players = {
        "generator": generator.init(keys[0], jnp.zeros((1, latent))),
        "critic": critic.init(keys[1], jnp.zeros((1, dim))),
    }
    states = {name: adam().init(params) for name, params in players.items()}

    def move(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = adam().update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(carry: Any, x: Array) -> tuple[Any, Array]:
        rng_key, generator_params, critic_params, generator_state, critic_state = carry
        rng_key, draw_key = random.split(rng_key)
        z = random.normal(draw_key, (batch, latent))
        draws = generator.apply(generator_params, z)

        def critic_loss(params: Any) -> Array:
            real, fake = critic.apply(params, x), critic.apply(params, draws)
            return nn.softplus(-real).mean() + nn.softplus(fake).mean()

        def generator_loss(params: Any) -> Array:
            return -nn.softplus(critic.apply(critic_params, generator.apply(params, z))).mean()

        value, grads = jax.value_and_grad(critic_loss)(critic_params)
        critic_params, critic_state = move(grads, critic_state, critic_params)
        grads = jax.grad(generator_loss)(generator_params)
        generator_params, generator_state = move(grads, generator_state, generator_params)
        return (rng_key, generator_params, critic_params, generator_state, critic_state), value

    carry = (keys[2], players["generator"], players["critic"])
    return (*carry, states["generator"], states["critic"]), step


class Scanned:
    """A contestant: ``steps`` steps under one jitted ``lax.scan``, whose state is in place."""

    def __init__(self, state: Any, step: Step, xs: Array) -> None:
        self.state, self.xs = state, xs
        loop = jax.jit(lambda state, xs: lax.scan(step, state, xs), donate_argnums=0)
        self.compiled = loop.lower(state, xs).compile()

    def __call__(self, steps: int) -> float:
        self.state, losses = self.compiled(self.state, self.xs)
        return float(losses[-1])


def step_ratios(smoke: bool, seed: int) -> list[Row]:
    """Part g."""
    sizes = (8, 16, 8, 2) if smoke else (256, 784, 512, 64)
    repetitions, steps = (3, 2) if smoke else (60, 10)
    xs = random.uniform(random.key(seed), (steps, *sizes[:2]))
    contestants: dict[str, Contestant] = {
        "hand": Scanned(*hand(*sizes), xs),
        "ours": Scanned(*ours(*sizes), xs),
        "ours-two-pass": Scanned(*ours(*sizes, "two_pass"), xs),
    }
    times = harness.interleave(contestants, repetitions, steps, seed)
    return harness.ratio_rows("numpyro", "gan", times, PAIRS)


def dense_mmd2(x: Array, y: Array, bandwidths: tuple[float, ...]) -> Array:
    """What one writes without thinking of memory: three full kernel matrices."""

    def kernel(a: Array, b: Array) -> Array:
        squared = jnp.square(a).sum(-1)[:, None] + jnp.square(b).sum(-1) - 2 * a @ b.T
        return jnp.stack([jnp.exp(-squared / (2 * s**2)) for s in bandwidths]).mean(0)

    def off_diagonal_mean(matrix: Array) -> Array:
        n = len(matrix)
        return (matrix.sum() - jnp.trace(matrix)) / (n * (n - 1))

    within = off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y))
    return within - 2 * kernel(x, y).mean()


def mmd(smoke: bool, seed: int, memory: Callable[[Any], float]) -> list[Row]:
    """Part h: time and memory of value and gradient in the model's parameters."""
    rows = []
    dim, bandwidths = (4, (1.0, 2.0)) if smoke else (64, (4.0, 8.0, 16.0))
    loss = MMD(GaussianKernel(bandwidths))

    def model(x: Array, base: Array) -> None:
        weight = numpyro.param("weight", jnp.eye(dim))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Delta(base @ weight, event_dim=1), obs=x)

    def ours_value(weight: Array, x: Array, base: Array) -> Array:
        return loss.loss(random.key(0), {"weight": weight}, model, None, x, base)

    def dense_value(weight: Array, x: Array, base: Array) -> Array:
        return dense_mmd2(x, base @ weight, bandwidths)

    for batch in (16, 32) if smoke else (1000, 4000):
        keys = random.split(random.key(seed), 2)
        inputs = (jnp.eye(dim) * 1.1, *(random.normal(key, (batch, dim)) for key in keys))
        both: dict[str, Contestant] = {}
        case = f"MMD, batch {batch}, {dim} dims, {len(bandwidths)} bandwidths"
        values = {}
        for name, value in {"ours": ours_value, "dense": dense_value}.items():
            compiled = jax.jit(jax.value_and_grad(value)).lower(*inputs).compile()
            values[name] = float(compiled(*inputs)[0])

            def run(steps: int, compiled: Any = compiled, inputs: Any = inputs) -> float:
                for _ in range(steps):
                    result = jax.block_until_ready(compiled(*inputs))
                return float(result[0])

            both[name] = run
            what = f"{name}: compiled value and gradient"
            rows.append(harness.row("h", "numpyro", case, what, "MiB", memory(compiled)))
        if abs(values["ours"] - values["dense"]) > 1e-5:
            raise AssertionError(f"the contestants do not compute the same thing: {values}")
        times = harness.interleave(both, 3 if smoke or batch > 1000 else 15, 1, seed, warmup=1)
        pairs = (Pair("h", "value and gradient", "ours", "dense"),)
        rows += harness.ratio_rows("numpyro", case, times, pairs)
    return rows
