# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Calls of the host out of compiled steps: made when due, whichever result is used."""

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
from numpyro.infer import SVI, Trace_ELBO

from numpyro_spread import (
    AdversarialDivergence,
    SupportMismatchWarning,
    concat_sites,
    finite_guard,
    two_player,
)
from numpyro_spread._host_calls import call_if

X = jnp.full(4, 50.0)


def model(x):
    w = numpyro.param("w", 0.5)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Delta(w * z), obs=x)


def empty(x):
    pass


class Sure(linen.Module):
    @linen.compact
    def __call__(self, x):
        return self.param("scale", linen.initializers.ones, ()) * 100 * (x.sum(-1) - 25)


def loss_of(svi, state, x):
    return lax.scan(lambda s, _: svi.update(s, x), state, None, length=30)[1]


def params_of(svi, state, x):
    return svi.get_params(lax.scan(lambda s, _: svi.update(s, x), state, None, length=30)[0])


def values_of(svi, state, x):
    states = jax.vmap(lambda key: state._replace(rng_key=key))(random.split(state.rng_key, 30))
    return lax.map(lambda s: svi.evaluate(s, x), states)


@pytest.mark.parametrize("use", [loss_of, params_of, values_of])
def test_a_monitor_is_told_whatever_is_used(use):
    loss = AdversarialDivergence(concat_sites(Sure(), "x"))
    optim = two_player(optax.adam(1e-3), optax.sgd(0.0))
    svi = SVI(model, loss.register(model, empty), optim, loss)
    state = svi.init(random.key(0), X)
    with pytest.warns(SupportMismatchWarning) as caught:
        jax.block_until_ready(jax.jit(lambda state: use(svi, state, X))(state))
    assert len(caught) == 1


@pytest.mark.parametrize("use", [loss_of, params_of])
@pytest.mark.parametrize(
    ("action", "error"), [("raise", jax.errors.JaxRuntimeError), ("skip", UserWarning)]
)
def test_a_guard_speaks_whatever_is_used(action, error, use):
    def observed(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(numpyro.param("w", 0.5), 1.0), obs=x)

    svi = finite_guard(SVI(observed, empty, optax.adam(0.1), Trace_ELBO()), action)
    state = svi.init(random.key(0), X)
    run = jax.jit(lambda state, x: use(svi, state, x))
    assert not run.trace(state, X).jaxpr.effects
    raises = pytest.warns if action == "skip" else pytest.raises
    with raises(error, match="NonFiniteError: .* argument|the last 10 steps were all skipped"):
        jax.block_until_ready(run(state, X * jnp.nan))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.block_until_ready(run(state, X))


def test_elements_under_vmap_call_by_themselves():
    seen = []

    def step(x, y):
        one = call_if(x > 1, lambda *values: seen.append(values), x, y)
        return one * x

    def double(xs, y):
        return jax.vmap(jax.vmap(step, (0, None)), (0, None))(xs, y)

    xs, y = jnp.arange(6.0).reshape(2, 3), jnp.array([7.0, 8.0])
    np.testing.assert_array_equal(jax.jit(double)(xs, y), xs)
    assert sorted(float(x) for x, _ in seen) == [2, 3, 4, 5]
    assert all(y.tolist() == [7, 8] for _, y in seen)
    seen.clear()
    step(jnp.array(0.0), y), step(jnp.array(2.0), y)  # eager
    assert [float(x) for x, _ in seen] == [2]


def test_no_gradient_goes_through_a_call():
    def value(x):
        return x**2 * call_if(x > 1, lambda x: None, x)

    for differentiate in (jax.grad, jax.jacfwd, jax.hessian):
        found = jax.jit(differentiate(value))(3.0)
        assert found == (2 if differentiate is jax.hessian else 6)
