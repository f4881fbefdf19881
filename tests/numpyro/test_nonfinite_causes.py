# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What is taken for NaN, and what is not, in NumPyro."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import mask
from numpyro.infer import SVI, Trace_ELBO

from numpyro_spread import finite_guard, guard_status

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 6)
BAD = X.at[2].set(jnp.nan)


def model(x):
    w = numpyro.param("w", 0.0)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(w, 1.0), obs=x)


def masked(x):
    w, is_there = numpyro.param("w", 0.0), jnp.isfinite(x)
    with numpyro.plate("data", len(x)), mask(mask=is_there):
        numpyro.sample("x", dist.Normal(w, 1.0), obs=jnp.where(is_there, x, 0.0))


def empty(x):
    pass


def guarded(model, x, action="raise"):
    svi = finite_guard(SVI(model, empty, optax.adam(0.1), Trace_ELBO()), action)
    return svi, svi.init(KEY, x)


@pytest.mark.parametrize("compiled", [False, True])
def test_missing_data_that_the_model_masks_are_no_cause(compiled):
    svi, state = guarded(masked, X)
    state, loss = (jax.jit(svi.update) if compiled else svi.update)(state, BAD)
    assert np.isfinite(loss)
    assert guard_status(svi, state).skipped == 0


def test_data_are_named_where_they_are_the_cause():
    svi, state = guarded(model, X)
    message = r"model's argument\(s\) \['x'\] contain NaN or inf.*It led to: the loss is (NaN|inf)"
    update = jax.jit(svi.update)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(update(state, BAD))
    _, loss = update(state, X)
    assert np.isfinite(loss)


def test_a_param_that_is_nan_already_comes_before_data():
    svi, state = guarded(masked, X)
    count, (params, rest) = state.optim_state.guarded
    params = {"w": params["w"] * jnp.nan}
    state = state._replace(optim_state=state.optim_state._replace(guarded=(count, (params, rest))))
    with pytest.raises(jax.errors.JaxRuntimeError, match="NonFiniteError: param 'w' of"):
        jax.block_until_ready(jax.jit(svi.update)(state, BAD))


def test_good_steps_under_vmap():
    svi, _ = guarded(model, X)
    states = jax.vmap(lambda key: svi.init(key, X))(jax.random.split(KEY, 3))
    states, losses = jax.vmap(lambda state: svi.update(state, X))(states)
    assert np.isfinite(losses).all()
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"argument\(s\) \['x'\] contain"):
        jax.block_until_ready(jax.jit(jax.vmap(svi.update, in_axes=(0, None)))(states, BAD))


def test_a_run_that_is_under_way_can_be_guarded():
    svi = SVI(model, empty, optax.adam(0.1), Trace_ELBO())
    state, _ = svi.update(svi.init(KEY, X), X)
    wanted, _ = svi.update(state, X)
    svi = finite_guard(svi)
    with pytest.raises(ValueError, match="To keep what was trained before"):
        svi.update(state, X)
    fresh = svi.init(KEY, X)
    # As the message says.
    state = state._replace(optim_state=fresh.optim_state._replace(guarded=state.optim_state))
    found, _ = svi.update(state, X)
    np.testing.assert_array_equal(svi.get_params(found)["w"], wanted.optim_state[1][0]["w"])
