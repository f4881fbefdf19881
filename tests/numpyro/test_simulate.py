# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulations in NumPyro: keys, compilation, and what cannot be mapped over."""

import random
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.handlers import substitute

from numpyro_spread import simulate
from numpyro_spread._forward_runs import ForwardRuns


def nested(x=None):
    mu = numpyro.sample("mu", dist.Normal(5.0, 1.0))
    with numpyro.plate("groups", 2, dim=-2):
        z = numpyro.sample("z", dist.Normal(mu, 0.1))
        with numpyro.plate("data", 4, dim=-1), numpyro.handlers.mask(mask=jnp.arange(4) < 3):
            count = numpyro.sample("count", dist.Poisson(4.0))
            loc = jnp.stack([z + count, -z + 0 * count], -1)
            numpyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x)


def test_mapped_runs_are_those_that_stand_alone():
    sims = simulate(nested, 20, jnp.zeros((2, 4, 2)), chunk_size=8)
    program = ForwardRuns(nested, (jnp.zeros((2, 4, 2)),), {}, jax.random.key(0))
    program.batched = False
    single = program(0, 20)
    assert list(sims.values) == list(single.values)
    for site, value in single.values.items():
        np.testing.assert_allclose(sims[site], value, rtol=1e-5)
        assert sims[site].dtype == value.dtype
    assert sims.observed == single.observed == ("x",)
    np.testing.assert_array_equal(sims.masks["x"], single.masks["x"])


def test_a_seed_may_be_a_key_of_either_kind(tmp_path):
    expected = simulate(nested, 5, seed=3)["x"]
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        np.testing.assert_array_equal(simulate(nested, 5, seed=key)["x"], expected)
    simulate(nested, 5, seed=jax.random.key(3), path=tmp_path / "t.nc")
    simulate(nested, 5, seed=jax.random.PRNGKey(3), path=tmp_path / "t.nc")
    with pytest.raises(ValueError, match=re.escape("seed=[0, 3], this call has seed=[0, 4]")):
        simulate(nested, 5, seed=jax.random.key(4), path=tmp_path / "t.nc")


def test_a_scan_is_simulated():
    def model(x=None):
        def step(carry, _):
            carry = numpyro.sample("z", dist.Normal(carry, 0.1))
            return carry, numpyro.sample("x", dist.Normal(carry, 0.1), obs=None)

        scan(step, 10.0, None, length=6)

    sims = simulate(model, 7, observed="x")
    assert sims["x"].shape == sims["z"].shape == (7, 6)
    assert sims.observed == ("x",)


def test_numpy_inside_runs_one_by_one():
    def model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        numpyro.sample("x", dist.Delta(jnp.asarray(np.sort(np.asarray(z))), event_dim=1))

    with pytest.warns(UserWarning, match="the model runs once .* TracerArrayConversionError"):
        sims = simulate(model, 10)
    np.testing.assert_array_equal(sims["x"], np.sort(sims["z"], -1))


@pytest.mark.parametrize("draw", [np.random.normal, random.random])
def test_random_numbers_of_python_would_be_the_same_in_all_runs(draw):
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Delta(z + draw()))

    state = np.random.get_state()[1].copy(), random.getstate()
    with pytest.warns(UserWarning, match="it draws random numbers of Python or NumPy, which would"):
        sims = simulate(model, 10)
    assert len(np.unique(np.round(sims["x"] - sims["z"], 5))) == 10
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert random.getstate() == state[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(simulate(model, 10)["x"], sims["x"])


@pytest.mark.filterwarnings("ignore:of 40 simulations some failed")
def test_a_callback_that_fails_for_some_leaves_the_others():
    def solve(z):
        if (np.asarray(z) > 1).any():
            raise ArithmeticError("no")
        return np.asarray(2 * z, np.float32)

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        value = jax.pure_callback(solve, shape, z, vmap_method="sequential")
        numpyro.sample("x", dist.Delta(value))

    sims = simulate(model, 40, chunk_size=10)
    assert 0 < sims.failed.sum() < 20
    good = ~sims.failed
    np.testing.assert_allclose(sims["x"][good], 2 * sims["z"][good], rtol=1e-6)


def test_a_param_needs_a_value():
    def model():
        loc = numpyro.param("loc", lambda key: jax.random.normal(key))
        numpyro.sample("x", dist.Normal(loc, 0.001))

    with pytest.raises(ValueError, match="param 'loc' has no value, and would be initialised anew"):
        simulate(model, 5)
    sims = simulate(substitute(model, data={"loc": jnp.array(4.0)}), 5)
    np.testing.assert_allclose(sims["x"], 4.0, atol=0.01)

    def constant():
        numpyro.sample("x", dist.Normal(numpyro.param("loc", 3.0), 0.001))

    np.testing.assert_allclose(simulate(constant, 5)["x"], 3.0, atol=0.01)


def test_masks_inside_events_have_the_shape_of_the_site():
    def model():
        inside = dist.Normal(jnp.zeros(3), 1.0).mask(jnp.arange(3) < 2).to_event(1)
        numpyro.sample("x", inside.expand([4]))

    def whole():
        numpyro.sample("x", dist.Normal(jnp.zeros((4, 3)), 1.0).to_event(1).mask(jnp.arange(4) < 2))

    np.testing.assert_array_equal(simulate(model, 2).masks["x"][0], np.arange(3) < [[2]] * 4)
    np.testing.assert_array_equal(simulate(whole, 2).masks["x"][0], np.arange(4) < 2)


def test_half_precision_that_numpy_has_not_becomes_float32():
    def model():
        numpyro.sample("x", dist.Delta(jnp.ones(3, jnp.bfloat16), event_dim=1))

    assert simulate(model, 2)["x"].dtype == np.float32
