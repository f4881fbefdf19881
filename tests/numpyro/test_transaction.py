# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A step of NumPyro's SVI that does not end leaves the state, and what losses count, as it was."""

import every
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI, Trace_ELBO

import numpyro_spread
from numpyro_spread import (
    ImplicitDistribution,
    concat_sites,
    finite_guard,
    two_player,
)

X = 5 + jax.random.normal(jax.random.key(1), (8, 3))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(x)


def program(implicit, stop):
    def net(x):
        return flax_module("net", Normed(), input_shape=(8, 3), mutable=["batch_stats"])(x)

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            mean = net(jnp.repeat(z.sum(-1, keepdims=True), 3, -1) + 1)
            if stop[0] is not None:
                raise stop[0]
            numpyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        h = x @ numpyro.param("w", jnp.zeros((3, 4)))
        loc, scale = h[:, :2], jnp.exp(h[:, 2:])
        with numpyro.plate("data", len(x)):
            if implicit:
                base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
                numpyro.sample("z", ImplicitDistribution(lambda e: loc + scale * e, base, (2,)))
            else:
                numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


LISTED = every.LOSSES | every.WITHOUT_NOISE


def critic(*sites):
    return concat_sites(nn.Dense(1), *sites)


def made(kind, stop):
    """A loss of the list, with its model and guide."""
    entry = LISTED[kind]
    model, guide = program(entry.guide == "implicit", stop)
    guide = (lambda x: None) if entry.guide == "empty" else guide
    return entry.make(numpyro_spread, critic), model, guide


def copied(tree):
    """Of arrays that never change, in containers that might."""
    return jax.tree.map(lambda leaf: leaf, tree)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert jnp.array_equal(a, b)


# The guard is the same around all: one loss that counts, one of two players, one without a guide.
GUARDED = ("adaptive", "JS", "MMD")
ENDED = [
    pytest.param(
        kind,
        guarded,
        id=f"{kind}-{'guarded' if guarded else 'free'}",
        marks=pytest.mark.slow if guarded and kind not in GUARDED else (),
    )
    for kind in LISTED
    for guarded in (False, True)
]


@pytest.mark.parametrize(("kind", "guarded"), ENDED)
def test_whatever_ends_a_step(kind, guarded):
    stop = [None]
    loss, model, guide = made(kind, stop)
    optim = optax.adam(0.1)
    if LISTED[kind].has_critic:
        optim = two_player(optim, optax.adam(0.1), ema=0.9)
    svi = SVI(model, loss.register(model, guide), optim, loss)
    if guarded:
        svi = finite_guard(svi, "skip")
    state = svi.init(jax.random.key(0), X)
    counters = loss.get_state() if hasattr(loss, "get_state") else None
    before, (wanted, _) = copied(state), svi.update(state, X)
    for error in (RuntimeError("boom"), KeyboardInterrupt()):
        stop[0] = error
        for update in (svi.update, svi.stable_update, jax.jit(lambda state: svi.update(state, X))):
            with pytest.raises(type(error)):
                update(state) if update not in (svi.update, svi.stable_update) else update(state, X)
        stop[0] = None
        assert_same(state, before)
        if counters is not None:
            assert loss.get_state() == counters
    assert_same(svi.update(state, X)[0], wanted)


def test_a_run_that_is_interrupted_leaves_what_it_began_with():
    stop = [None]
    model, guide = program(False, stop)
    svi = SVI(model, guide, optax.adam(0.1), Trace_ELBO())
    state = svi.init(jax.random.key(0), X)
    before, (wanted, _) = copied(state), svi.update(state, X)
    stop[0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        svi.run(jax.random.key(0), 3, X, init_state=state, progress_bar=False)
    stop[0] = None
    assert_same(state, before)
    assert_same(svi.update(state, X)[0], wanted)


@pytest.mark.parametrize("kind", LISTED)
def test_a_step_moves_running_averages_once(kind):
    loss, model, guide = made(kind, [None])
    svi = SVI(model, loss.register(model, guide), optax.sgd(0.0), loss)
    state = svi.init(jax.random.key(0), jnp.zeros_like(X))

    def weight(state):
        """What is left of the averages at the start."""
        stats = state.mutable_state["net$state"]["batch_stats"]["BatchNorm_0"]
        return stats["mean"]

    far = jax.tree.map(lambda leaf: leaf + 1e6, state.mutable_state)
    moved, _ = svi.update(state._replace(mutable_state=far), X)
    assert jnp.allclose(weight(moved), 0.99e6, rtol=1e-4)
