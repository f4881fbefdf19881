# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Two optimisers as one in NumPyro: who moves when, by how much, and by whose settings."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen
from jax import lax, random
from numpyro.infer import SVI

from numpyro_spread import (
    AdversarialDivergence,
    averaged_params,
    concat_sites,
    two_player,
)

X = jnp.linspace(-1.0, 2.0, 16)
CRITIC = "discriminator$params"


def model(x):
    w = numpyro.param("w", 0.5)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Delta(w * z + w), obs=x)


def guide(x):
    pass


def path(optim, steps, x=X, stable=False, **options):
    """Params before the first step and after every one, of the same start and the same draws."""
    loss = AdversarialDivergence(concat_sites(linen.Dense(1), "x"), **options)
    svi = SVI(model, loss.register(model, guide), optim, loss)
    update = svi.stable_update if stable else svi.update

    critic = f"{options.get('name', 'discriminator')}$params"

    def body(state, x):
        params = svi.get_params(state)
        return update(state, x)[0], (params["w"], *jax.tree.leaves(params[critic]))

    @jax.jit
    def walk(key, xs):
        return lax.scan(body, svi.init(key, X), xs)[1]

    # As an array that is scanned, so that its values are known at run time only.
    w, bias, kernel = walk(random.key(0), jnp.broadcast_to(x, (steps + 1, *x.shape)))
    return np.asarray(w), np.asarray(bias)[:, 0], np.asarray(kernel)[:, 0, 0]


@pytest.mark.parametrize("update", ["one_pass", "two_pass"])
def test_a_player_that_stands_still_does_not_change_the_other(update):
    both = path(two_player(optax.sgd(0.1), optax.sgd(0.2)), 1, update=update)
    generator = path(two_player(optax.sgd(0.1), optax.sgd(0.0)), 1, update=update)
    critic = path(two_player(optax.sgd(0.0), optax.sgd(0.2)), 1, update=update)
    assert both[0][1] == generator[0][1] != 0.5
    assert critic[0][1] == 0.5
    for index in (1, 2):
        assert both[index][1] == critic[index][1] != critic[index][0]
        assert generator[index][1] == generator[index][0]


@pytest.mark.parametrize("k", [1, 3])
def test_the_generator_moves_at_every_kth_step(k):
    w, _, kernel = path(two_player(optax.sgd(0.1), optax.sgd(0.2), discriminator_steps=k), 7)
    moved = np.diff(w) != 0
    assert list(moved) == [step % k == 0 for step in range(1, 8)]
    assert (np.diff(kernel) != 0).all()


def test_the_generator_follows_the_gradient_of_its_own_step():
    once = path(two_player(optax.sgd(0.1), optax.sgd(0.2), discriminator_steps=3), 3)
    # The same first two steps of the critic, then both.
    late = optax.sgd(lambda step: jnp.where(step < 2, 0.0, 0.1))
    assert once[0][3] == pytest.approx(path(two_player(late, optax.sgd(0.2)), 3)[0][3], rel=1e-6)
    assert once[0][3] != 0.5


def test_rates_clipping_and_schedules_are_each_players_own():
    free = path(two_player(optax.sgd(1.0), optax.sgd(1.0)), 2)
    clipped_sgd = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    clipped = path(two_player(optax.sgd(1.0), clipped_sgd), 2)
    assert clipped[0][1] == free[0][1]
    step = [np.diff(values)[0] for values in clipped[1:]]
    assert np.hypot(*step) == pytest.approx(1e-3, rel=1e-2)
    assert np.hypot(*[np.diff(values)[0] for values in free[1:]]) > 1e-2
    stops = optax.sgd(optax.piecewise_constant_schedule(1.0, {0: 0.0}))
    stopped = path(two_player(stops, optax.sgd(1.0)), 2)
    assert stopped[0][2] == stopped[0][1] or stopped[0][1] == 0.5
    assert stopped[2][2] != stopped[2][1]


def test_any_optimiser_serves():
    for make in (optax.adam, optax.rmsprop, optax.adamw, optax.lion):
        w, bias, _ = path(two_player(make(0.01), make(0.01)), 2)
        assert (np.diff(w) != 0).all()
        assert (np.diff(bias) != 0).all()


def test_a_step_without_a_number_is_skipped_by_both():
    nan = X.at[3].set(jnp.nan)
    optim = two_player(optax.adam(0.1), optax.adam(0.1))
    for values in path(optim, 2, x=nan, stable=True):
        assert (np.diff(values) == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of draws that are NaN: the params are
        assert any(np.isnan(values[-1]) for values in path(optim, 2, x=nan))


def test_another_name_is_split_by_that_name():
    w, bias, _ = path(two_player(optax.sgd(0.0), optax.sgd(0.2), name="judge"), 1, name="judge")
    assert w[1] == 0.5
    assert bias[1] != bias[0]
    with pytest.raises(ValueError, match=r"no param belongs to the discriminator 'judge'.*'w'"):
        path(two_player(optax.sgd(0.1), optax.sgd(0.2), name="judge"), 1)
    split = two_player(optax.sgd(0.0), optax.sgd(0.2))
    state = split.init({"discriminator_shift": jnp.ones(()), CRITIC: jnp.ones(())})
    grads = {"discriminator_shift": jnp.ones(()), CRITIC: jnp.ones(())}
    updates, _ = split.update(grads, state, grads)
    assert float(updates["discriminator_shift"]) == 0
    assert float(updates[CRITIC]) == pytest.approx(-0.2)


def test_refusals():
    sgd = optax.sgd(0.1)
    with pytest.raises(TypeError, match=r"two_player: generator must be an optax\.Grad.* got 0\.1"):
        two_player(0.1, sgd)
    with pytest.raises(TypeError, match="two_player: discriminator must be an optax"):
        two_player(sgd, numpyro.optim.Adam(0.1))
    for steps in (0, -1, 1.5):
        with pytest.raises(ValueError, match="two_player: discriminator_steps must be a positive"):
            two_player(sgd, sgd, discriminator_steps=steps)


@pytest.mark.parametrize("k", [1, 2])
def test_average_of_the_generator(k):
    optim = two_player(optax.sgd(0.1), optax.sgd(0.2), k, ema=0.4)
    loss = AdversarialDivergence(concat_sites(linen.Dense(1), "x"))
    svi = SVI(model, loss.register(model, guide), optim, loss)
    state = svi.init(random.key(0), X)
    values, update = [], jax.jit(svi.update)
    for _ in range(12):
        state = update(state, X)[0]
        values.append(float(svi.get_params(state)["w"]))
    values = values[k - 1 :: k]
    average = values[0]
    for count, value in enumerate(values[1:], start=2):
        kept = min(0.4, (1 + count) / (10 + count))
        average = kept * average + (1 - kept) * value
    params, last = averaged_params(svi, state), svi.get_params(state)
    np.testing.assert_allclose(params["w"], average, rtol=1e-6)
    assert float(params["w"]) != float(last["w"])
    # The critic is not averaged.
    jax.tree.map(np.testing.assert_array_equal, params[CRITIC], last[CRITIC])


def test_no_average_is_an_error():
    loss = AdversarialDivergence(concat_sites(linen.Dense(1), "x"))
    svi = SVI(model, loss.register(model, guide), two_player(optax.sgd(1), optax.sgd(1)), loss)
    state = svi.init(random.key(0), X)
    with pytest.raises(ValueError, match=r"must be two_player\(\.\.\., ema=0\.999\)"):
        averaged_params(svi, state)
    with pytest.raises(ValueError, match=r"ema must be in \(0, 1\), or None, got 1.5"):
        two_player(optax.sgd(1), optax.sgd(1), ema=1.5)
