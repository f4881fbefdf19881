# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Nets in bfloat16 in NumPyro: every loss agrees with its value in float32, and trains."""

import functools

import every
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, TraceMeanField_ELBO

import numpyro_spread as ns
from numpyro_spread import (
    GaussianNoise,
    ImplicitDistribution,
    LowRankGaussianNoise,
    SpreadELBO,
    concat_sites,
    two_player,
)

NOISE = {"x": GaussianNoise(0.5)}
LOW_RANK = {"x": LowRankGaussianNoise(0.5, jnp.ones((2, 1)))}
KEY = jax.random.key(0)
X = 1.5 + jax.random.normal(KEY, (64, 2)) @ jnp.array([[1.0, 0.5], [0.0, 0.7]])


class Net(nn.Module):
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(16, dtype=self.dtype)(x))
        return nn.Dense(self.width, dtype=self.dtype)(x)


def draw(encoder, x, eps):
    return encoder(jnp.concatenate([jnp.broadcast_to(x, eps.shape), eps], -1))


def programs(dtype, likely=False):
    def model(x):
        decoder = flax_module("decoder", Net(2, dtype), input_shape=(1, 2))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            mean = decoder(z)
            assert mean.dtype == dtype
            fn = dist.Normal(mean, 0.5).to_event(1) if likely else dist.Delta(mean, event_dim=1)
            numpyro.sample("x", fn, obs=x)

    def normal(x):
        encoder = flax_module("encoder", Net(2, dtype), input_shape=(1, 2))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(encoder(x), 0.3).to_event(1))

    def implicit(x):
        encoder = flax_module("encoder", Net(2, dtype), input_shape=(1, 4))
        fn = jax.tree_util.Partial(draw, encoder, x)
        base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", ImplicitDistribution(fn, base, (2,)))

    return model, normal, implicit


def empty(x):
    pass


def critic(dtype, *names):
    return concat_sites(Net(1, dtype), *names)


def of_list(name):
    loss = every.LOSSES[name]
    return lambda dtype: (loss.guide, loss.make(ns, functools.partial(critic, dtype)))


# From a type to guide and loss.
LOSSES = {name: of_list(name) for name in every.LOSSES} | {
    "spread mean field": lambda d: ("normal", SpreadELBO(NOISE, TraceMeanField_ELBO())),
    "spread low rank": lambda d: ("normal", SpreadELBO(LOW_RANK)),
}
DEFAULT = ("joint",)
CASES = [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in LOSSES]


def made(name, dtype):
    guide, loss = LOSSES[name](dtype)
    model, normal, implicit = programs(dtype, likely=name == "semi")
    guide = {"normal": normal, "implicit": implicit, "empty": empty}[guide]
    return model, guide, loss


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_near_those_of_float32(name):
    results = []
    for dtype in (jnp.bfloat16, jnp.float32):
        model, guide, loss = made(name, dtype)
        guide = loss.register(model, guide)
        params = SVI(model, guide, optax.sgd(0.1), loss).init(KEY, X).optim_state[1][0]

        def value(params, model=model, guide=guide, loss=loss):
            return loss.loss(KEY, params, model, guide, X)

        results.append(jax.jit(jax.value_and_grad(value))(params))
    (value, grads), (exact, exact_grads) = results
    assert value.dtype == jnp.float32
    assert abs(value - exact) < 0.02 * max(abs(exact), 0.1)
    norm = optax.global_norm(exact_grads)
    differences = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), grads, exact_grads)
    assert max(jax.tree.leaves(differences)) < 0.05 * norm
    assert max(jax.tree.leaves(differences)) > 0  # the nets did compute in 16 bits


@pytest.mark.slow
@pytest.mark.parametrize("name", every.TRAINS_MODEL)
def test_training_moves_the_model_towards_the_data(name):
    model, guide, loss = made(name, jnp.bfloat16)
    optim = optax.adam(1e-2)
    if name in every.HAS_CRITIC:
        optim = two_player(optim, optax.adam(2e-2), 2 if name == "Wasserstein" else 1)
    svi = SVI(model, loss.register(model, guide), optim, loss)

    def distance(state):
        params = {"params": svi.get_params(state)["decoder$params"]}
        draws = Net(2, jnp.float32).apply(params, jax.random.normal(KEY, (1000, 2)))
        return float(jnp.linalg.norm(draws.mean(0) - X.mean(0)))

    state = svi.init(KEY, X)
    before = distance(state)
    steps = 300 if name in every.HAS_CRITIC else 50
    result = svi.run(KEY, steps, X, progress_bar=False, init_state=state)
    assert np.isfinite(result.losses).all()
    assert distance(result.state) < 0.8 * before


@pytest.mark.slow
def test_params_in_bfloat16():
    def model(x):
        w = numpyro.param("w", jnp.zeros(2, jnp.bfloat16))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Delta(jnp.broadcast_to(w, x.shape), event_dim=1), obs=x)

    loss = SpreadELBO(NOISE)
    svi = SVI(model, loss.register(model, empty), optax.adam(0.1), loss)
    result = svi.run(KEY, 200, X, progress_bar=False)
    assert result.params["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(result.params["w"].astype(float), X.mean(0), atol=0.1)
