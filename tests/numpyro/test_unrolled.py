# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Unrolled critics in NumPyro: nets of all libraries, and steps that are too long."""

import equinox
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import ring
from jax import random
from numpyro.infer import SVI

from numpyro_spread import (
    R1,
    AdversarialDivergence,
    GaussianNoise,
    JSPi,
    concat_sites,
    two_player,
)
from numpyro_spread.ratio import logistic_loss

CRITIC = "discriminator$params"
X = 1 + random.normal(random.key(0), (40, 2))
Z = random.normal(random.key(1), (40, 2))


def no_guide(*args):
    pass


def model(x, z):
    w = numpyro.param("w", jnp.array([0.5, 1.5]))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Delta(w * z, event_dim=1), obs=x)


class Normed(flax.linen.Module):
    """A critic that couples the samples of a batch."""

    @flax.linen.compact
    def __call__(self, x):
        hidden = flax.linen.BatchNorm(use_running_average=False)(flax.linen.Dense(6)(x))
        return flax.linen.Dense(1)(jnp.tanh(hidden))


def gradients(loss, params):
    return jax.value_and_grad(lambda p: loss.loss(random.key(3), p, model, no_guide, X, Z))(params)


def test_a_critic_with_batch_normalisation_is_followed():
    net = Normed()
    params = {"w": jnp.array([0.5, 1.5]), CRITIC: net.init(random.key(2), X)["params"]}

    def judge(critic, values):
        return net.apply({"params": critic}, values, mutable="batch_stats")[0][:, 0]

    def ahead(w):
        def critic_loss(critic):
            return logistic_loss(judge(critic, X), judge(critic, w * Z), 0.3)

        critic = params[CRITIC]
        for _ in range(3):
            critic = jax.tree.map(lambda p, g: p - 0.4 * g, critic, jax.grad(critic_loss)(critic))
        return -critic_loss(critic)

    critic = concat_sites(net, "x")
    plain = AdversarialDivergence(critic, JSPi(0.3))
    unrolled = AdversarialDivergence(critic, JSPi(0.3), unroll=3, unroll_step_size=0.4)
    (value, found), (before, without) = gradients(unrolled, params), gradients(plain, params)
    np.testing.assert_allclose(found["w"], jax.grad(ahead)(params["w"]), rtol=1e-4, atol=1e-6)
    assert jnp.abs(found["w"] - without["w"]).max() > 5e-3
    assert value == before
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        found[CRITIC],
        without[CRITIC],
    )


NETS = {
    "linen": lambda: flax.linen.Dense(1),
    "nnx": lambda: flax.nnx.Linear(2, 1, rngs=flax.nnx.Rngs(0)),
    "equinox": lambda: equinox.nn.Linear(2, 1, key=random.key(0)),
}


@pytest.mark.parametrize(
    "library",
    ["linen", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nnx", "equinox"))],
)
def test_whole_steps(library):
    """With noise, a lazy penalty and several particles, in an unmodified SVI."""
    loss = AdversarialDivergence(
        concat_sites(NETS[library](), "x"),
        JSPi(0.5),
        {"x": GaussianNoise(0.3)},
        regularizer=R1(0.1, every=4),
        num_particles=2,
        unroll=2,
    )
    optim = two_player(optax.adam(0.05), optax.adam(0.05))
    svi = SVI(model, loss.register(model, no_guide), optim, loss)
    result = svi.run(random.key(0), 60, X, Z, progress_bar=False)
    assert np.isfinite(result.losses).all()
    assert (result.params["w"] != jnp.array([0.5, 1.5])).all()
    state = svi.init(random.key(0), X, Z)
    assert np.isfinite(svi.evaluate(state, X, Z))


def test_steps_that_are_too_long_do_not_look_right():
    """A compiled step cannot raise an error: its value is NaN, as its gradient is."""
    net = flax.linen.Sequential([flax.linen.Dense(4), flax.linen.Dense(1)])
    params = {"w": jnp.array([0.5, 1.5]), CRITIC: net.init(random.key(2), X)["params"]}
    loss = AdversarialDivergence(concat_sites(net, "x"), unroll=9, unroll_step_size=1e30)
    assert jnp.isnan(jax.jit(gradients, static_argnums=0)(loss, params)[0])


@pytest.mark.slow
def test_modes_on_a_ring_are_kept():
    """Without R1, a critic thirty times slower than the generator; five seeds."""
    plain, ahead = ring.in_numpyro(0), ring.in_numpyro(5)
    assert sum(found.modes for found in ahead) > sum(found.modes for found in plain)
    assert sum(found.near for found in ahead) > sum(found.near for found in plain)
