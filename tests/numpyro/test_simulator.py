# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulators round black boxes inside of NumPyro: plates, handlers, jit, vmap and scan."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.contrib.control_flow import scan
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.handlers import seed, trace, uncondition
from numpyro.infer import SVI, Predictive

from numpyro_spread import KL, JointContrastELBO, Simulator

KEY = random.key(0)


def walk(rng, drift, start):
    """Of shape (n, 2), from a drift of shape (n,) and starts of shape (n, 2)."""
    walk.runs.append(len(drift))
    return start + drift[:, None] + rng.normal(size=(len(drift), 2))


walk.runs = []


def step(rng, drift, start):
    """One walk."""
    return start + drift + rng.normal(size=2)


def walker(drift, start, fn=walk):
    return Simulator(
        fn, drift, start, event_shape=(2,), arg_event_dims=(0, 1), vectorized=fn is walk
    )


def model(x=None):
    theta = numpyro.sample("theta", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1):
        return numpyro.sample("x", walker(0.5, theta), obs=x)


@pytest.fixture(autouse=True)
def nothing_run():
    walk.runs.clear()


def distinct(values):
    return len(set(np.asarray(values).ravel().tolist())) == np.size(values)


def test_plates_and_predictive_draw_afresh():
    values = seed(model, KEY)()
    assert values.shape == (3, 4, 2)
    assert walk.runs == [12]  # one call for all plates
    assert distinct(values)
    for parallel, runs in ((False, [12] * 5), (True, [60])):
        walk.runs.clear()
        x = Predictive(model, num_samples=5, parallel=parallel)(KEY)["x"]
        assert x.shape == (5, 3, 4, 2)
        assert distinct(x)
        assert walk.runs[-len(runs) :] == runs


def test_vectorized_particles_are_one_call():
    def run(key):
        return trace(seed(uncondition(model), key)).get_trace(jnp.zeros((3, 4, 2)))["x"]["value"]

    for compiled in (False, True):
        walk.runs.clear()
        mapped = jax.vmap(run)
        values = (jax.jit(mapped) if compiled else mapped)(random.split(KEY, 6))
        jax.block_until_ready(values)
        assert values.shape == (6, 3, 4, 2)
        assert distinct(values)
        assert walk.runs == [72]


def test_the_seed_is_the_key():
    first = seed(model, KEY)()
    np.random.seed(0)  # NumPy's own generator has no part in it
    np.testing.assert_array_equal(first, seed(model, KEY)())
    assert np.all(first != seed(model, random.key(1))())
    np.testing.assert_array_equal(first, seed(model, random.PRNGKey(0))())


def test_jit_changes_nothing():
    for fn in (walk, step):
        one = walker(jnp.arange(4.0), jnp.ones(2), fn)
        np.testing.assert_array_equal(
            jax.jit(lambda d: d.sample(KEY, (3,)))(one), one.sample(KEY, (3,))
        )


def test_row_by_row_a_vmapped_draw_is_what_it_is_alone():
    fn, keys = walker(jnp.arange(4.0), jnp.ones(2), step), random.split(KEY, 3)
    alone = jnp.stack([fn.sample(key) for key in keys])
    np.testing.assert_array_equal(jax.vmap(fn.sample)(keys), alone)


def test_vmap_over_arguments_alone():
    draws = jax.vmap(lambda drift: walker(drift, jnp.zeros(2)).sample(KEY))(jnp.zeros((6, 4)))
    assert draws.shape == (6, 4, 2)
    assert walk.runs == [24]
    assert distinct(draws)


def test_copies():
    fn = walker(jnp.zeros(5), jnp.ones(2))
    leaves, structure = jax.tree.flatten(fn)
    assert len(leaves) == 2
    for twin in (
        copy.deepcopy(fn),
        pickle.loads(pickle.dumps(fn)),
        jax.tree.unflatten(structure, leaves),
        jax.jit(lambda d: d)(fn),
        fn.expand((5,)),
    ):
        assert twin.batch_shape == (5,)
        np.testing.assert_array_equal(twin.sample(KEY), fn.sample(KEY))


def test_vmapped_construction_is_promoted():
    stacked = jax.vmap(walker)(jnp.zeros((6, 4)), jnp.zeros((6, 2)))
    assert stacked.batch_shape == (4,)
    whole = promote_batch_shape(stacked)
    assert whole.batch_shape == (6, 4)
    assert whole.sample(KEY).shape == (6, 4, 2)
    assert promote_batch_shape(walker(jnp.zeros(4), jnp.zeros(2))).batch_shape == (4,)
    nested = promote_batch_shape(stacked.mask(jnp.ones(4, bool)))
    assert nested.batch_shape == (6, 4)


def test_scan_calls_it_at_every_step():
    def body(last, _):
        with numpyro.plate("walkers", 4):
            last = numpyro.sample("x", walker(0.1, last))
        return last, last

    def series():
        return scan(body, jnp.zeros((4, 2)), None, length=5)[1]

    traced = trace(seed(series, KEY)).get_trace()
    values = traced["x"]["value"]
    assert values.shape == (5, 4, 2)
    assert distinct(values)
    assert traced["x"]["fn"].batch_shape == (5, 4)
    steps = np.diff(np.asarray(values), axis=0)
    assert abs(steps.mean() - 0.1) < 0.5


@pytest.mark.parametrize("fn", [walk, step])
def test_a_gradient_through_a_draw_is_refused(fn):
    def total(drift):
        return walker(drift, jnp.ones(2), fn).sample(KEY).sum()

    for compiled in (False, True):
        grad = jax.grad(total)
        with pytest.raises(NotImplementedError, match="Simulator: no gradient passes"):
            (jax.jit(grad) if compiled else grad)(jnp.zeros(3))
    fixed = jax.grad(lambda drift: drift.sum() + total(jax.lax.stop_gradient(drift)))
    np.testing.assert_array_equal(fixed(jnp.zeros(3)), jnp.ones(3))
    with pytest.raises(NotImplementedError):
        walker(jnp.zeros(3), jnp.ones(2), fn).rsample(KEY)


def test_narrow_arguments_are_widened():
    assert walker(jnp.zeros(5, jnp.bfloat16), jnp.ones(2)).sample(KEY).dtype == jnp.float32


def test_random_keys_are_no_numbers():
    with pytest.raises(TypeError, match="argument 1 after fn must be an array of numbers"):
        Simulator(walk, KEY, event_shape=(2,))


def test_a_function_that_cannot_be_hashed():
    class Walk:
        __hash__ = None

        def __call__(self, rng, drift):
            return drift

    fn = Walk()
    draw = jax.jit(lambda d: d.sample(KEY))
    for _ in range(2):
        assert draw(Simulator(fn, jnp.ones(3), event_shape=())).shape == (3,)
    assert draw._cache_size() == 1


def test_one_function_is_compiled_once():
    draw = jax.jit(lambda d: d.sample(KEY))
    for drift in (0.0, 1.0):
        draw(walker(jnp.full(4, drift), jnp.ones(2)))
    assert draw._cache_size() == 1


def test_a_large_batch_under_jit_ends():
    """JAX on one core once waited for ever for large arguments of a callback."""
    drift, start = jnp.zeros(20_000), jnp.zeros((20_000, 2))

    @jax.jit
    def draws(key, start):
        for each in random.split(key, 3):
            start = jnp.sin(walker(drift, start).sample(each))
        return start

    for _ in range(3):
        start = draws(KEY, start)
    assert np.isfinite(start).all()
    assert walk.runs == [20_000] * 9


def test_a_model_with_vectors_trains_a_guide():
    def guide(x):
        loc = numpyro.param("loc", jnp.zeros(2))
        numpyro.sample("theta", dist.Normal(loc, 1.0).to_event(1))

    loss = JointContrastELBO(divergence=KL())
    svi = SVI(model, loss.register(model, guide), optax.adam(0.1), loss)
    result = svi.run(KEY, 3, jnp.zeros((3, 4, 2)), progress_bar=False)
    assert np.isfinite(result.losses).all()
    assert np.any(result.params["loc"])
