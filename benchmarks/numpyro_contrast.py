# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A step of adversarial variational Bayes in NumPyro and in plain JAX, and its cost in k."""

from __future__ import annotations

import math
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen as nn
from harness import Contestant, Pair, Row
from jax import Array, random
from jax.tree_util import Partial
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI
from numpyro_gan import Scanned

from numpyro_spread import ImplicitDistribution, PriorContrastELBO, concat_sites, two_player
from spread_core.moments import predictive_regret

PAIRS = (Pair("i", "svi.update under scan", "ours", "hand", 1.05),)
Sizes = tuple[int, int, int, int, int, int]  # batch, pixels, hidden, latents, noise, moment draws


class MLP(nn.Module):
    hidden: int
    num_outputs: int
    num_hidden: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(self.num_hidden):
            x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.num_outputs)(x)


class Head(nn.Module):
    """Draws from features and noise; the features are computed once per datum."""

    hidden: int
    latent: int

    @nn.compact
    def __call__(self, features: Array, eps: Array) -> Array:
        return nn.Dense(self.latent)(nn.relu(features + nn.Dense(self.hidden)(eps)))


def adam() -> optax.GradientTransformation:
    return optax.adam(2e-4, b1=0.5)


def nets(sizes: Sizes) -> dict[str, Any]:
    _, dim, hidden, latent, _, _ = sizes
    return {
        "body": MLP(hidden, hidden, 1),
        "head": Head(hidden, latent),
        "decoder": MLP(hidden, dim),
        "critic": MLP(hidden, 1),
    }


def ours(sizes: Sizes, critic_steps: int = 1) -> Any:
    batch, dim, hidden, latent, num_noise, moment_draws = sizes
    net = nets(sizes)

    def model(x: Array) -> None:
        decode = flax_module("decoder", net["decoder"], input_shape=(latent,))
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Array) -> None:
        body = flax_module("body", net["body"], input_shape=(dim,))
        head = flax_module("head", net["head"], jnp.zeros(hidden), jnp.zeros(num_noise))
        noise = dist.Normal(jnp.zeros(num_noise), 1.0).to_event(1)
        encode = Partial(lambda features, eps: head(features, eps), body(x))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", ImplicitDistribution(encode, noise, event_shape=(latent,)))

    loss = PriorContrastELBO(concat_sites(net["critic"], "x", "z"), num_moment_draws=moment_draws)
    optim = two_player(adam(), adam(), critic_steps)
    svi = SVI(model, loss.register(model, guide), optim, loss)
    return svi.init(random.key(0), jnp.zeros((batch, dim))), svi.update


def hand(sizes: Sizes) -> Any:
    """Guide and model against a frozen critic, the critic against the same draws, one gradient."""
    batch, dim, hidden, latent, num_noise, num = sizes
    net = nets(sizes)
    keys = random.split(random.key(0), 5)
    shapes = {"body": [dim], "decoder": [latent], "critic": [dim + latent]}
    params = {
        name: net[name].init(key, *map(jnp.zeros, shapes.get(name, [hidden, num_noise])))
        for name, key in zip(net, keys, strict=False)
    }
    nu, spread = num - 1, 1 + 1 / num
    constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)
    constant += predictive_regret(num) - 0.5 * math.log(nu * math.pi * spread)

    def loss(params: Any, rng_key: Array, x: Array) -> Array:
        eps_key, moment_key, *t_keys = random.split(rng_key, 4)
        features = net["body"].apply(params["body"], x)
        z = net["head"].apply(params["head"], features, random.normal(eps_key, (batch, num_noise)))
        eps = random.normal(moment_key, (num, batch, num_noise))
        frozen = jax.lax.stop_gradient((params, features))
        draws = net["head"].apply(frozen[0]["head"], frozen[1], eps)
        mean, scale = draws.mean(0), draws.std(0, ddof=1)
        # A Student t by the polar method.
        uniform = random.uniform(t_keys[0], mean.shape, minval=jnp.finfo(mean.dtype).tiny)
        angle = random.uniform(t_keys[1], mean.shape, maxval=2 * math.pi)
        radius = jnp.sqrt(nu * jnp.expm1(-2 / nu * jnp.log(uniform)))
        other = math.sqrt(spread) * radius * jnp.cos(angle)
        u = (z - mean) / scale
        fixed = jax.lax.stop_gradient(u)

        def judge(critic: Any, u: Array) -> Array:
            return net["critic"].apply(critic, jnp.concatenate([x, u], -1))[..., 0]

        blurred = fixed + spread * (u - fixed)
        log_r = constant - (nu + 1) / 2 * jnp.log1p(jnp.square(blurred) / (nu * spread))
        log_q = judge(frozen[0]["critic"], u) + (log_r - jnp.log(scale)).sum(-1)
        log_p = -(jnp.square(z) / 2 + math.log(2 * math.pi) / 2).sum(-1)
        likelihood = -optax.sigmoid_binary_cross_entropy(
            net["decoder"].apply(params["decoder"], z), x
        )
        value = (log_q - log_p).sum() - likelihood.sum()
        learnt = nn.softplus(-judge(params["critic"], fixed)).mean()
        learnt = (learnt + nn.softplus(judge(params["critic"], other)).mean()) / 2
        return value + learnt - jax.lax.stop_gradient(learnt)

    def step(carry: Any, x: Array) -> tuple[Any, Array]:
        rng_key, params, state = carry
        rng_key, draw_key = random.split(rng_key)
        value, grads = jax.value_and_grad(loss)(params, draw_key, x)
        updates, state = adam().update(grads, state, params)
        return (rng_key, optax.apply_updates(params, updates), state), value

    return (keys[-1], params, adam().init(params)), step


def rows(parts: set[str], smoke: bool, seed: int) -> list[Row]:
    """Parts i and j."""
    sizes = (8, 16, 8, 2, 3, 4) if smoke else (128, 784, 300, 8, 16, 32)
    repetitions, steps = (3, 4) if smoke else (60, 8)
    xs = random.bernoulli(random.key(seed), 0.5, (steps, *sizes[:2])).astype(jnp.float32)
    found: list[Row] = []
    if "i" in parts:
        contestants: dict[str, Contestant] = {
            "hand": Scanned(*hand(sizes), xs),
            "ours": Scanned(*ours(sizes), xs),
        }
        if not smoke:
            harness.check_similar({name: run(steps) for name, run in contestants.items()})
        times = harness.interleave(contestants, repetitions, steps, seed)
        found += harness.ratio_rows("numpyro", "avb", times, PAIRS)
    if "j" in parts:
        # Every contestant does the same number of updates: fewer steps of the guide at larger k.
        each = {f"k = {k}": Scanned(*ours(sizes, k), xs) for k in harness.CRITIC_STEPS}
        times = harness.interleave(each, repetitions, steps, seed)
        scaled = {
            name: [k * t for t in times[name]]
            for name, k in zip(each, harness.CRITIC_STEPS, strict=True)
        }
        found += harness.ratio_rows(
            "numpyro", "avb, a step of the guide", scaled, harness.COST_IN_K
        )
    return found
