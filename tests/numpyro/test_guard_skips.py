# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A guard that skips skips, whoever speaks first of NaN and inf in NumPyro; all else raises."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.primitives import mutable as numpyro_mutable

from numpyro_spread import (
    GaussianNoise,
    NonFiniteError,
    SpreadELBO,
    finite_guard,
    guard_status,
)

X = jnp.ones(5)


def observing(make):
    """A model that observes x by ``make(w, bad)``, where bad is 0 or 1."""

    def model(x, bad):
        fn = make(numpyro.param("w", 0.5), bad)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", fn, obs=x)

    return model


def empty(x, bad):
    pass


def guarded(model, guide=empty, loss=None, action="skip"):
    svi = finite_guard(SVI(model, guide, optax.adam(0.01), loss or Trace_ELBO()), action)
    return svi, svi.init(jax.random.key(0), X, 0.0)


def w_of(svi, state):
    return float(svi.get_params(state)["w"])


def nan_if(bad):
    return jnp.where(bad > 0, jnp.nan, 0.0)


NUMBERS = {
    "scale inf": lambda w, bad: dist.Normal(0.0, jnp.exp(w + 200.0 * bad)),
    "scale zero": lambda w, bad: dist.Normal(0.0, jnp.exp(w - 200.0 * bad)),
    "loc nan": lambda w, bad: dist.Normal(w + nan_if(bad), 1.0),
    "constant scale": lambda w, bad: dist.Normal(w, 1.0 - 2 * bad),
    "cholesky": lambda w, bad: dist.Normal(
        jnp.linalg.cholesky((w - 5 * bad) * jnp.eye(2))[0, 0], 1.0
    ),
    "covariance": lambda w, bad: dist.Normal(
        w + dist.MultivariateNormal(jnp.zeros(2), (1 - 2 * bad) * jnp.eye(2)).scale_tril[0, 0], 1.0
    ),
}


@pytest.mark.parametrize(
    ("compiled", "validation"),
    [(True, True), (False, True), (False, False)],
    ids=["jit", "eager", "not validated"],
)
@pytest.mark.parametrize("what", NUMBERS)
def test_numbers(what, compiled, validation):
    with numpyro.validation_enabled(validation):
        svi, state = guarded(observing(NUMBERS[what]))
        update = jax.jit(svi.update) if compiled else svi.update
        before = w_of(svi, state)
        state, loss = update(state, X, 1.0)
        assert jnp.isnan(loss) or jnp.isinf(loss)
        assert w_of(svi, state) == before
        status = guard_status(svi, state)
        assert status.skipped == 1
        assert 0 < len(status.last) < 700
        state, _ = update(state, X, 0.0)
        assert guard_status(svi, state).in_a_row == 0
        assert w_of(svi, state) != before


@pytest.mark.parametrize("method", ["update", "stable_update"])
@pytest.mark.parametrize("big", [-200.0, 200.0])
def test_the_scale_of_a_guide(big, method):
    def model(x, bad):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Delta(z), obs=x)

    def guide(x, bad):
        scale = jnp.exp(numpyro.param("w", 0.0) + big * bad)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(0.0, scale))

    loss = SpreadELBO({"x": GaussianNoise(0.3)})
    svi, state = guarded(model, loss.register(model, guide), loss, "reduce")
    state, value = getattr(svi, method)(state, X, 1.0)
    assert not jnp.isfinite(value)
    assert guard_status(svi, state)[:3] == (1, 1, 0.5)


def numpy_cholesky(w, bad):
    return dist.Normal(w + float(np.linalg.cholesky((1 - 2 * bad) * np.eye(2))[0, 0]), 1.0)


def int_of_nan(w, bad):
    return dist.Normal(w + int(np.where(bad, np.nan, 0.0)), 1.0)


def division(w, bad):
    return dist.Normal(w + 1 / (1 - bad), 1.0)


@pytest.mark.parametrize("make", [numpy_cholesky, int_of_nan, division])
def test_python_that_raises_where_jax_gives_nan(make):
    svi, state = guarded(observing(make))
    before = w_of(svi, state)
    state, value = svi.update(state, X, 1.0)
    assert jnp.isnan(value)
    assert w_of(svi, state) == before
    assert guard_status(svi, state).skipped == 1


@pytest.mark.parametrize(
    "error", [TypeError("operand"), KeyError("nan"), NotImplementedError("nan")]
)
def test_mistakes(error):
    def make(w, bad):
        if bad:
            raise error
        return dist.Normal(w, 1.0)

    svi, state = guarded(observing(make))
    with pytest.raises(type(error)):
        svi.update(state, X, 1.0)
    assert guard_status(svi, state).skipped == 0
    svi.update(state, X, 0.0)


def test_a_mistake_in_compiled_code_is_not_skipped_for_ever():
    svi, state = guarded(observing(lambda w, bad: dist.Normal(w, 1.0 if bad == 0 else -1.0)))
    with pytest.raises(ValueError, match="invalid scale"):
        jax.jit(lambda state: svi.update(state, X, 1.0))(state)


def test_mutable_state_of_a_step_that_raised():
    def model(x, bad):
        count = numpyro_mutable("count", {"n": jnp.zeros(())})
        count["n"] = count["n"] + 1
        w = numpyro.param("w", 0.5)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(w, jnp.exp(200.0 * bad)), obs=x)

    svi, state = guarded(model)
    before = float(state.mutable_state["count"]["n"])
    skipped, value = svi.update(state, X, 1.0)
    assert not jnp.isfinite(value)
    assert float(skipped.mutable_state["count"]["n"]) == before
    after, _ = svi.update(skipped, X, 0.0)
    assert float(after.mutable_state["count"]["n"]) == before + 1


def told(update, state):
    return jax.block_until_ready(update(state, X, 1.0)[0])


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
def test_skipping_for_ever_is_said(compiled):
    svi, state = guarded(observing(NUMBERS["loc nan"]))
    update = jax.jit(svi.update) if compiled else svi.update
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(9):
            state, _ = update(state, X, 1.0)
        jax.block_until_ready(state)
    with pytest.warns(UserWarning, match="the last 10 steps were all skipped.*the loss is NaN"):
        state = told(update, state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bad in (1.0, 1.0, 0.0, 1.0):
            state, _ = update(state, X, bad)
        jax.block_until_ready(state)


def test_skipping_for_ever_in_a_run():
    svi = finite_guard(
        SVI(observing(NUMBERS["loc nan"]), empty, optax.adam(0.01), Trace_ELBO()), "skip"
    )
    with pytest.warns(UserWarning, match="the last 10 steps were all skipped"):
        result = svi.run(jax.random.key(0), 12, X * jnp.nan, 0.0, progress_bar=False)
    assert guard_status(svi, result.state).in_a_row == 12


def test_raise_still_raises():
    svi, state = guarded(observing(NUMBERS["scale zero"]), action="raise")
    with pytest.raises(ValueError, match="invalid scale"):
        svi.update(state, X, 1.0)
    svi, state = guarded(observing(NUMBERS["cholesky"]), action="raise")
    with numpyro.validation_enabled(False), pytest.raises(NonFiniteError, match="the loss is NaN"):
        svi.update(state, X, 1.0)
