# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What every loss promises in NumPyro, whatever it compares."""

import copy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from every import HAS_CRITIC, LOSSES, OF_RUNS
from numpyro.contrib.module import flax_module
from numpyro.infer import SVI

import numpyro_spread
from numpyro_spread import ImplicitDistribution, concat_sites, two_player

KEY = jax.random.key(0)
X = np.asarray(1.5 + jax.random.normal(KEY, (20, 2)))

every = pytest.mark.parametrize("name", LOSSES | OF_RUNS)


class Net(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(nn.tanh(nn.Dense(8)(x)))


def draw(encoder, x, eps):
    return encoder(jnp.concatenate([jnp.broadcast_to(x, eps.shape), eps], -1))


class Problem:
    """Model, guide and loss on two-dimensional data."""

    def __init__(self, name):
        self.entry = (LOSSES | OF_RUNS)[name]
        self.loss = self.entry.make(numpyro_spread, lambda *sites: concat_sites(Net(1), *sites))
        self.guide = getattr(self, self.entry.guide)

    def model(self, x, fails=False):
        decoder = flax_module("decoder", Net(2), input_shape=(1, 2))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            if fails:
                raise RuntimeError("the user's own mistake")
            mean = decoder(z)
            scored = dist.Normal(mean, 0.5).to_event(1)
            fn = scored if self.entry.likely else dist.Delta(mean, event_dim=1)
            numpyro.sample("x", fn, obs=x)

    def empty(self, x, fails=False):
        pass

    def normal(self, x, fails=False):
        encoder = flax_module("encoder", Net(2), input_shape=(1, 4))
        with numpyro.plate("data", x.shape[-2]):
            loc = encoder(jnp.concatenate([x, x], -1))
            numpyro.sample("z", dist.Normal(loc, 0.3).to_event(1))

    def implicit(self, x, fails=False):
        encoder = flax_module("encoder", Net(2), input_shape=(1, 4))
        base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
        fn = jax.tree_util.Partial(draw, encoder, x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", ImplicitDistribution(fn, base, (2,)))

    def svi(self):
        adam = optax.adam(1e-2)
        if self.entry.has_critic:
            adam = two_player(adam, optax.adam(1e-2))
        guide = self.loss.register(self.model, self.guide)
        return SVI(self.model, guide, adam, self.loss)


@pytest.fixture(scope="module")
def trained():
    """By name: the problem, its SVI, the state before and after one compiled step, and the loss."""
    made = {}

    def of(name):
        if name not in made:
            problem = Problem(name)
            svi = problem.svi()
            before = svi.init(KEY, X)
            step = jax.jit(svi.update).trace(before, X)
            problem.effects = step.jaxpr.effects
            made[name] = (problem, svi, before, *step.lower().compile()(before, X))
        return made[name]

    return of


@every
def test_a_step_trains_every_player_and_leaves_the_data(trained, name):
    data = X.copy()
    problem, svi, before, after, loss = trained(name)
    assert np.isfinite(loss)
    np.testing.assert_array_equal(X, data)
    old, new = svi.get_params(before), svi.get_params(after)
    moved = {
        player.partition("$")[0]
        for player in old
        if any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (old[player], new[player])),
                                              strict=True))
    }  # fmt: skip
    players = ["decoder"] if problem.entry.trains_model else []
    players += ["encoder"] if problem.entry.guide != "empty" else []
    players += ["discriminator"] if problem.entry.has_critic else []
    assert moved == set(players)


@every
def test_a_compiled_step_has_no_effects(trained, name):
    # JAX dispatches what has some by a way that takes a millisecond.
    assert not trained(name)[0].effects


@pytest.mark.slow
@every
def test_compiled_and_eager_agree(trained, name):
    _, svi, before, _, loss = trained(name)
    _, eager = svi.update(before, X)
    np.testing.assert_allclose(eager, loss, rtol=1e-4, atol=1e-5)


@every
def test_evaluation_trains_nothing_and_takes_a_key(trained, name):
    problem, svi, before, _, _ = trained(name)
    params = svi.get_params(before)
    guide = problem.loss.register(problem.model, problem.guide)

    @jax.jit
    def value(key):
        return problem.loss.loss(key, params, problem.model, guide, X)

    one, same, other = value(KEY), value(KEY), value(jax.random.key(1))
    assert np.isfinite(one)
    assert one == same
    assert one != other or problem.entry.has_critic  # an estimate may be at its bound


@every
def test_an_error_in_the_model_is_the_users_own(trained, name):
    _, svi, before, *_ = trained(name)
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        svi.update(before, X, fails=True)


@every
def test_a_loss_can_be_copied(trained, name):
    problem, svi, before, *_ = trained(name)
    twin = copy.deepcopy(problem.loss)
    assert type(twin) is type(problem.loss)
    guide = twin.register(problem.model, problem.guide)
    assert np.isfinite(twin.loss(KEY, svi.get_params(before), problem.model, guide, X))


@pytest.mark.parametrize("name", HAS_CRITIC)
def test_a_critic_that_is_not_registered_is_named(name):
    problem = Problem(name)
    svi = SVI(problem.model, problem.guide, optax.adam(1e-2), problem.loss)
    with pytest.raises(ValueError, match="register"):
        svi.update(svi.init(KEY, X), X)
