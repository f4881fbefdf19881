# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A training program in NumPyro that can be killed and started again."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax import random
from numpyro.infer import SVI

from numpyro_spread import (
    AdversarialDivergence,
    GaussianNoise,
    ImplicitDistribution,
    JSPi,
    PriorContrastELBO,
    concat_sites,
    load_checkpoint,
    save_checkpoint,
    two_player,
)


class Critic(nn.Module):
    normalised: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        if self.normalised:
            x = nn.BatchNorm(use_running_average=False)(x)
        return nn.Dense(1)(nn.relu(x))


def gan():
    """A critic with mutable state; both players with all they can have."""

    def model(x):
        w, b = numpyro.param("w", jnp.ones((2, 2))), numpyro.param("b", 0.0)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Delta(z @ w + b, event_dim=1), obs=x)

    def guide(x):
        pass

    rate = optax.exponential_decay(1e-2, 10, 0.9)
    optim = two_player(
        optax.inject_hyperparams(optax.adam)(learning_rate=rate),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
        discriminator_steps=2,
        ema=0.9,
    )
    noise = {"x": GaussianNoise(0.3)}
    loss = AdversarialDivergence(concat_sites(Critic(True), "x"), JSPi(0.5), noise=noise)
    return SVI(model, loss.register(model, guide), optim, loss), random.key


def contrast():
    """An annealed contrast ELBO under an optimiser of NumPyro's, with a key of the old style."""

    def model(x):
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def guide(x):
        weight = numpyro.param("weight", lambda key: random.normal(key, (2, 2)))
        with numpyro.plate("data", len(x)):
            base = dist.Normal(jnp.zeros(2), 1.0).to_event(1).expand(x.shape[:1])
            implicit = ImplicitDistribution(
                lambda eps: x @ weight + eps + 0.1 * eps**2, base, event_shape=(2,)
            )
            numpyro.sample("z", implicit)

    critic = concat_sites(Critic(False), "z")
    loss = PriorContrastELBO(critic, annealing=40, num_moment_draws=16)
    optim = numpyro.optim.ClippedAdam(1e-2)
    return SVI(model, loss.register(model, guide), optim, loss), random.PRNGKey


def train(kind, directory, steps, every, progress):
    """
    The whole program: it goes on where the newest checkpoint is, if there is one.

    :param progress: called after every step.
    """
    svi, seed = {"gan": gan, "contrast": contrast}[kind]()
    state, start = jax.jit(svi.init)(seed(1), jnp.ones((16, 2))), 0
    try:
        state, checkpoint = load_checkpoint(directory, svi, state)
        start = checkpoint.step
    except FileNotFoundError:
        pass
    update = jax.jit(svi.update, donate_argnums=0)
    draw = jax.jit(lambda step: random.normal(random.fold_in(random.key(7), step), (16, 2)) + 1)
    for step in range(start, steps):
        state, _ = update(state, draw(step))
        progress(step)
        if (step + 1) % every == 0 or step + 1 == steps:
            save_checkpoint(directory, svi, state, step + 1, metadata={"kind": kind})


KINDS = ("gan", "contrast")
