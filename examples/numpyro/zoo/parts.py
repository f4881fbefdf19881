# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Code that the files of the zoo share in NumPyro: nets, the loop around ``svi.update``, evaluation.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from flax import linen as nn
from jax import lax, random
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.elbo import ELBO
from numpyro.infer.svi import SVIState
from studies.gan_study import as_images, as_signed
from studies.zoo import (
    MAX_COUNT,
    Settings,
    Trained,
    ZooData,
    batches,
    learning_rate_factor,
)

from numpyro_spread import importance_weighted_bound, two_player
from numpyro_spread.ratio import MLPCritic

# PyTorch's default, so that both backends start alike.
like_torch = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
Dense = functools.partial(nn.Dense, kernel_init=like_torch)


# Images that are evaluated at a time: what nets compute for thousands of large ones is gigabytes.
CHUNK = 500
# The last image to settle decides how many passes are made for all that are drawn with it.
DRAWN_AT_ONCE = 100


class MLP(nn.Module):
    """Two hidden layers: generator, decoder and encoder of all systems."""

    hidden_dim: int
    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = nn.relu(Dense(self.hidden_dim)(x))
        return Dense(self.num_outputs)(x)


def critic_net(settings: Settings) -> MLPCritic:
    """As wide and deep as the generator."""
    return MLPCritic([settings.hidden_dim] * 2)


def standard_normal(num: int) -> dist.Distribution:
    """The prior of all systems with a generator, and the noise of implicit distributions."""
    return dist.Normal(jnp.zeros(num), 1.0).to_event(1)


def no_guide(*args: Any) -> None:
    """Empty guide, for models without latents and for those trained by comparing samples."""


def adam(
    settings: Settings,
    *,
    pace: float = 1.0,
    num_steps: int | None = None,
    b1: float = 0.9,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """
    Adam whose rate falls to zero over the second half of the steps.

    :param pace: the rate at first, of the row's.
    """
    steps = num_steps or settings.num_steps

    def rate(step: jax.Array) -> jax.Array:
        return pace * settings.learning_rate * learning_rate_factor(step / steps)

    return optax.adamw(rate, b1=b1, weight_decay=weight_decay)


def adversaries(settings: Settings, critic_steps: int = 1) -> optax.GradientTransformation:
    """One optimiser for both players: constant learning rates and little momentum."""
    player = optax.adam(settings.learning_rate, b1=0.5)
    return two_player(player, player, critic_steps)


def fit(
    rng_key: jax.Array,
    settings: Settings,
    svi: SVI,
    *arrays: np.ndarray,
    num_steps: int | None = None,
    init_params: dict[str, Any] | None = None,
    in_one_program: bool = True,
) -> tuple[SVIState, float]:
    """
    Train on mini-batches of the arrays; the state and the seconds.

    :param init_params: where to start; what is left out starts as model and guide say.
    :param in_one_program: whether all steps are one program, or each is. Convolutions want the
        latter: on a CPU their gradient takes seventy times as long inside of a loop that is
        compiled (JAX 0.10.2).
    """
    began = time.perf_counter()
    steps = num_steps or settings.num_steps
    chunks = batches(len(arrays[0]), settings.batch_size, steps, settings.seed)
    rows = jnp.asarray(np.concatenate(list(chunks)))

    def first(rng_key: jax.Array, arrays: Any, init_params: Any) -> SVIState:
        example = (array[: settings.batch_size] for array in arrays)
        return svi.init(rng_key, *example, init_params=init_params)

    def step(state: SVIState, batch: jax.Array, arrays: Any) -> SVIState:
        return svi.update(state, *(array[batch] for array in arrays))[0]

    @jax.jit
    def run(rng_key: jax.Array, rows: jax.Array, arrays: Any, init_params: Any) -> SVIState:
        state = first(rng_key, arrays, init_params)
        return lax.scan(lambda state, batch: (step(state, batch, arrays), None), state, rows)[0]

    inputs = tuple(map(jnp.asarray, arrays))
    if in_one_program:
        state = run(rng_key, rows, inputs, init_params)
    else:
        state, one_step = jax.jit(first)(rng_key, inputs, init_params), jax.jit(step)
        for batch in rows:
            state = one_step(state, batch, inputs)
    jax.block_until_ready(state)
    return state, time.perf_counter() - began


def mean_bound(
    rng_key: jax.Array,
    svi: SVI,
    state: SVIState,
    *arrays: np.ndarray,
    num_draws: int = 10,
    **options: Any,
) -> float:
    """
    The loss on held-out images as a bound on log p(x), in nats per image.

    :param options: keyword arguments of model and guide that are not arrays.
    """

    def loss(key: jax.Array, state: SVIState, arrays: Any) -> jax.Array:
        return svi.evaluate(state._replace(rng_key=key), *arrays, **options)

    @jax.jit
    def mean(keys: jax.Array, state: SVIState, arrays: Any) -> jax.Array:
        return lax.map(lambda key: loss(key, state, arrays), keys).mean()

    total = 0.0
    for start in range(0, len(arrays[0]), CHUNK):
        keys = random.split(random.fold_in(rng_key, start) if start else rng_key, num_draws)
        total += float(mean(keys, state, [jnp.asarray(a[start : start + CHUNK]) for a in arrays]))
    return -total / len(arrays[0])


def weighted_bound(
    rng_key: jax.Array,
    svi: SVI,
    state: SVIState,
    num_samples: int,
    *arrays: np.ndarray | jax.Array,
    model: Callable[..., Any] | None = None,
) -> np.ndarray:
    """Bounds of log p(x) of every image by as many importance weights, nats."""
    evidence = importance_weighted_bound(
        rng_key,
        svi.get_params(state),
        model or svi.model,
        svi.guide,
        *map(jnp.asarray, arrays),
        num_samples=num_samples,
    )
    return np.asarray(evidence.values, np.float64)


def draw(rng_key: jax.Array, svi: SVI, state: SVIState, *args: Any) -> np.ndarray:
    """Images of a model that takes no data: x at draws of the prior."""

    @jax.jit
    def run(rng_key: jax.Array, params: Any) -> jax.Array:
        return Predictive(svi.model, params=params, num_samples=1)(rng_key, *args)["x"][0]

    return np.asarray(run(rng_key, svi.get_params(state)))


def draw_counts(rng_key: jax.Array, svi: SVI, state: SVIState, *args: Any) -> np.ndarray:
    """Draw whole-number pixels from a model."""
    return draw(rng_key, svi, state, *args) / MAX_COUNT


def draw_pixels(
    rng_key: jax.Array, net: nn.Module, variables: Any, num_images: int, num_pixels: int
) -> jax.Array:
    """
    Draw images from a net that gives logits of the levels of each pixel, or code.

    A draw is the level of which the log-probability and Gumbel noise have the largest sum. All
    pixels are drawn in one pass, and again with the same noise until none changes: after i passes
    the first i are as if drawn one after the other, and in the end all are. Most settle much sooner
    (Wiggers, Hoogeboom 2020, arXiv:2002.09928).
    """

    @jax.jit
    def draw_all(rng_key: jax.Array, variables: Any, x: jax.Array) -> jax.Array:
        return random.categorical(rng_key, net.apply(variables, x)).astype(x.dtype)

    chunks = []
    for start in range(0, num_images, DRAWN_AT_ONCE):
        key = random.fold_in(rng_key, start)
        new = jnp.zeros((DRAWN_AT_ONCE, num_pixels), jnp.int32)
        x = new - 1
        while (x != new).any():
            x, new = new, draw_all(key, variables, new)
        chunks.append(new)
    return jnp.concatenate(chunks)[:num_images]


def autoregressive_svi(settings: Settings, net: nn.Module, weight_decay: float = 0.0) -> SVI:
    """
    Maximum likelihood of rows of whole numbers x: its loss is minus log p(x), exactly.

    :param net: from x to logits of all its numbers, of each given those before it.
    """

    def model(x):
        logits = flax_module("net", net, input_shape=x.shape)(x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x)

    return SVI(model, no_guide, adam(settings, weight_decay=weight_decay), Trace_ELBO())


def train_pixels(
    data: ZooData,
    settings: Settings,
    net: nn.Module,
    draw: Callable[..., jax.Array] = draw_pixels,
    in_one_program: bool = False,
) -> Trained:
    """
    An autoregressive model of whole-number pixels, in reading order.

    :param net: as of :func:`autoregressive_svi`.
    :param draw: called as :func:`draw_pixels`, if there is a faster way.
    :param in_one_program: as of :func:`fit`.
    """
    fit_key, draw_key, test_key = random.split(random.key(settings.seed), 3)
    svi = autoregressive_svi(settings, net)
    train, test = (counts.astype(np.int32) for counts in (data.train_counts, data.test_counts))
    state, seconds = fit(fit_key, settings, svi, train, in_one_program=in_one_program)
    variables = {"params": svi.get_params(state)["net$params"]}
    samples = draw(draw_key, net, variables, settings.num_samples, data.num_pixels)
    return Trained(
        samples=np.asarray(samples) / MAX_COUNT,
        seconds=seconds,
        log_likelihood=mean_bound(test_key, svi, state, test, num_draws=1),
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
    net = nn.Sequential([MLP(settings.hidden_dim, data.num_pixels), nn.tanh])

    def model(x, num_images=0):
        generator = flax_module("generator", net, input_shape=(settings.latent_dim,))
        with numpyro.plate("data", num_images if x is None else len(x)):
            z = numpyro.sample("z", standard_normal(settings.latent_dim))
            numpyro.sample("x", dist.Delta(generator(z), event_dim=1), obs=x)

    loss = make_loss(critic_net(settings))
    optim = adversaries(settings, critic_steps) if critic_steps else adam(settings)
    svi = SVI(model, loss.register(model, no_guide), optim, loss)
    fit_key, draw_key = random.split(random.key(settings.seed))
    updates = settings.num_steps * max(1, critic_steps)
    images = as_signed(data.train_images)
    state, seconds = fit(fit_key, settings, svi, images, num_steps=updates)
    return Trained(as_images(draw(draw_key, svi, state, None, settings.num_samples)), seconds)
