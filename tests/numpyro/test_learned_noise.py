# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Learned noise in NumPyro, with all else that a step may have."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen
from jax import random
from numpyro import infer
from numpyro.infer import SVI

from numpyro_spread import (
    AdversarialDivergence,
    GaussianNoise,
    SpreadELBO,
    averaged_params,
    concat_sites,
    finite_guard,
    guard_status,
    learned,
    load_checkpoint,
    save_checkpoint,
    two_player,
)

X = random.normal(random.key(0), (12, 2)) * jnp.array([1.5, 0.5])
NOISE = "noise$x$params"


def noise():
    return learned(GaussianNoise(jnp.array([0.4, 0.6])), constraint="determinant")


def model(x, size=None, batch=None, keep=None):
    loc = numpyro.param("loc", jnp.zeros(2))
    with numpyro.plate("data", size or len(x), subsample_size=batch) as index:
        z = numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        fn = dist.Delta(z, event_dim=1)
        x = x[index] if size and batch and len(x) == size else x
        numpyro.sample("x", fn if keep is None else fn.mask(keep), obs=x)


def guide(x, size=None, batch=None, keep=None):
    w = numpyro.param("w", 0.5)
    with numpyro.plate("data", size or len(x), subsample_size=batch) as index:
        x = x[index] if size and batch and len(x) == size else x
        numpyro.sample("z", dist.Normal(w * x, 0.5).to_event(1))


def critic():
    return concat_sites(linen.Sequential([linen.Dense(8), jnp.tanh, linen.Dense(1)]), "x")


def adam():
    return optax.adam(1e-2)


def adversarial(**options):
    loss = AdversarialDivergence(critic(), noise={"x": noise()}, **options)
    optim = two_player(adam(), adam(), 2, noise=adam(), ema=0.9)
    return SVI(model, loss.register(model, None), optim, loss)


def bounded(elbo=None):
    loss = SpreadELBO({"x": noise()}, elbo)
    optim = two_player(adam(), None, noise=adam())
    return SVI(model, loss.register(model, guide), optim, loss)


def moves(svi, *args, **kwargs):
    static = {name: value for name, value in kwargs.items() if isinstance(value, int)}
    arrays = {name: value for name, value in kwargs.items() if name not in static}
    state = svi.init(random.key(1), *args, **kwargs)
    before = svi.get_params(state)[NOISE]["log_scale"]
    update = jax.jit(lambda state, args, arrays: svi.update(state, *args, **arrays, **static))
    for _ in range(4):
        state, loss = update(state, args, arrays)
        assert jnp.isfinite(loss)
    return state, not np.array_equal(before, svi.get_params(state)[NOISE]["log_scale"])


def few_or_slow(name):
    """A few cases are always run."""
    marks = () if name in ("masked", "trace") else pytest.mark.slow
    return pytest.param(name, marks=marks)


ADVERSARIAL = {
    "plain": ({}, {}),
    "particles": ({"num_particles": 3}, {}),
    "two passes": ({"update": "two_pass"}, {}),
    "masked": ({}, {"keep": jnp.arange(12) != 3}),
}


@pytest.mark.parametrize("name", [few_or_slow(name) for name in ADVERSARIAL])
def test_under_a_critic(name):
    options, kwargs = ADVERSARIAL[name]
    svi = adversarial(**options)
    state, moved = moves(svi, X, **kwargs)
    assert moved
    assert NOISE in averaged_params(svi, state)


ELBOS = {
    "trace": None,
    "particles": lambda: infer.Trace_ELBO(num_particles=3),
    "mean field": infer.TraceMeanField_ELBO,
    "graph": infer.TraceGraph_ELBO,
    "importance weighted": lambda: infer.RenyiELBO(num_particles=2),
}


@pytest.mark.parametrize("name", [few_or_slow(name) for name in ELBOS])
def test_under_a_bound(name):
    assert moves(bounded(ELBOS[name] and ELBOS[name]()), X)[1]


@pytest.mark.slow
def test_an_enumerated_latent_has_the_gradient_of_the_mixture():
    """The entropy's term is the same for every value of the latent, and counts once."""
    locs, grads = jnp.array([[-1.0, 0.0], [1.0, 0.5]]), []

    def enumerated(x):
        with numpyro.plate("data", len(x)):
            k = numpyro.sample(
                "k", dist.Categorical(jnp.ones(2) / 2), infer={"enumerate": "parallel"}
            )
            numpyro.sample("x", dist.Delta(locs[k], event_dim=1), obs=x)

    def summed(x):
        with numpyro.plate("data", len(x)):
            mixing, parts = dist.Categorical(jnp.ones(2) / 2), dist.Delta(locs, event_dim=1)
            numpyro.sample("x", dist.MixtureSameFamily(mixing, parts), obs=x)

    for program, elbo in ((enumerated, infer.TraceEnum_ELBO()), (summed, infer.Trace_ELBO())):
        loss = SpreadELBO({"x": noise()}, elbo)

        def value(params, loss=loss, program=program):
            return loss.loss(random.key(0), {NOISE: params}, program, lambda x: None, X)

        grads.append(jax.grad(value)(noise().init())["log_scale"])
    assert grads[0].any()
    np.testing.assert_allclose(*grads, rtol=1e-4)


@pytest.mark.parametrize("length", [12, 5])
def test_the_plate_may_subsample_and_the_bound_is_scaled(length):
    assert moves(bounded(), X[:length], size=12, batch=5)[1]


def test_values_that_are_moved_are_nan_where_nobody_sees_it():
    """Inside a compiled step an order is not known: the result says that it is wrong."""

    def program(x):
        loc = numpyro.param("loc", jnp.zeros(2))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            numpyro.sample("x", dist.Delta(z, event_dim=1), obs=x[::-1])

    loss = SpreadELBO({"x": noise()})
    params = {NOISE: noise().init(), "loc": jnp.zeros(2), "w": jnp.array(0.5)}
    step = jax.jit(lambda x: loss.loss(random.key(0), params, program, guide, x))
    assert jnp.isnan(step(X))


def test_the_reported_value_is_minus_the_bound():
    fixed = SpreadELBO({"x": GaussianNoise(jnp.array([0.4, 0.6]))})
    params = {NOISE: noise().init(), "loc": jnp.zeros(2), "w": jnp.array(0.5)}
    values = [
        loss.loss(random.key(0), params, model, guide, X)
        for loss in (fixed, SpreadELBO({"x": noise()}))
    ]
    np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.parametrize("make", [lambda: critic_loss(), lambda: SpreadELBO({"x": noise()})])
def test_without_register_nobody_knows_its_params(make):
    loss, params = make(), {"loc": jnp.zeros(2), "w": jnp.array(0.5)}
    if hasattr(loss, "discriminator"):
        params["discriminator$params"] = {}
    with pytest.raises(ValueError, match=r"noise\$x\$params.*loss.register"):
        loss.loss(random.key(0), params, model, guide, X)


def critic_loss():
    return AdversarialDivergence(critic(), noise={"x": noise()})


def test_it_is_made_outside_of_compiled_functions():
    with pytest.raises(ValueError, match="not known inside a compiled function"):
        jax.jit(lambda scale: learned(GaussianNoise(scale), "trace"))(jnp.ones(2))


@pytest.mark.parametrize("start", [adversarial, bounded])
def test_a_resumed_run_goes_on(start, tmp_path):
    svi = start()
    update = jax.jit(svi.update)
    state = svi.init(random.key(1), X)
    for _ in range(3):
        state, _ = update(state, X)
    save_checkpoint(tmp_path / "run", svi, state, 3)
    wanted, _ = update(state, X)
    svi = start()
    state, _ = load_checkpoint(tmp_path / "run", svi, svi.init(random.key(9), X))
    state, _ = jax.jit(svi.update)(state, X)
    for one, other in zip(
        jax.tree.leaves(svi.get_params(state)), jax.tree.leaves(svi.get_params(wanted)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_guard_skips_what_is_not_finite():
    svi = finite_guard(adversarial(), "reduce")
    state = svi.init(random.key(1), X)
    update = jax.jit(svi.update)
    before = svi.get_params(state)[NOISE]["log_scale"]
    state, _ = update(state, X * jnp.nan)
    assert guard_status(svi, state).skipped == 1
    np.testing.assert_array_equal(before, svi.get_params(state)[NOISE]["log_scale"])
