# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Latents that a program looks up by index belong to their own parts of the data."""

import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch

import numpyro_spread
import pyro_spread
from spread_core.amortized.exchangeable import plates_told_apart
from spread_core.amortized.layout import Group, Variable

BACKENDS = {
    "pyro": (pyro_spread, pyro, pyro.distributions, torch.as_tensor),
    "numpyro": (numpyro_spread, numpyro, numpyro.distributions, jnp.asarray),
}
ROWS = 500


def group(name, size, plate=None):
    plates = {plate: -1} if plate else {}
    return Group((Variable(name, (size,), (), plates, plates),))


def simulated(rng, spread):
    """Six latents round a common mean, two measurements of each, and their means."""
    mean = rng.normal(size=(ROWS, 1))
    z = mean + rng.normal(size=(ROWS, 6))
    own = np.repeat(z, 2, axis=1) + spread * rng.normal(size=(ROWS, 12))
    means = z.mean(1, keepdims=True) + rng.normal(size=(ROWS, 12))
    return {"z": z, "own": own, "means": means}


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_data_that_belong_to_single_elements_tell_them_apart(spread):
    values = simulated(np.random.default_rng(0), spread)
    latents = [group("z", 6, "groups")]
    assert plates_told_apart(latents, [group("own", 12)], values, 1) == {"groups"}
    assert plates_told_apart(latents, [group("own", 12, "data")], values, 1) == {"groups"}
    # Few numbers are looked at, but from everywhere.
    assert plates_told_apart(latents, [group("own", 12)], values, 1, most_numbers=4) == {"groups"}


def test_data_that_belong_to_all_elements_do_not():
    latents = [group("z", 6, "groups")]
    for seed in range(100):
        values = simulated(np.random.default_rng(seed), 1.0)
        assert plates_told_apart(latents, [group("means", 12)], values, 1) == set()


def test_elements_with_data_of_their_own_are_left_alone():
    values = simulated(np.random.default_rng(0), 0.1)
    values["inside"] = values["own"][:, ::2]
    data = [group("own", 12), group("inside", 6, "groups")]
    assert plates_told_apart([group("z", 6, "groups")], data, values, 1) == set()
    assert plates_told_apart([group("z", 6, "groups")], [], values, 1) == set()


def test_runs_that_failed_are_left_out():
    values = simulated(np.random.default_rng(0), 1.0)
    values["own"][:100] = np.nan
    assert plates_told_apart([group("z", 6, "groups")], [group("own", 12)], values, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_regression_by_index(backend):
    spread, ppl, dist, array = BACKENDS[backend]
    index = array(np.repeat(np.arange(3), 4))

    def model(index, y=None):
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        with ppl.plate("groups", 3):
            z = ppl.sample("z", dist.Normal(mu, 1.0))
        with ppl.plate("data", 12):
            ppl.sample("y", dist.Normal(z[..., index], 1.0), obs=y)

    posterior = spread.amortize(
        model, index, observed="y", num_simulations=2000, max_steps=100, progress_bar=False,
        ensemble=2, seed=0,
    )  # fmt: skip
    assert posterior.guide.ordered_plates == ("data", "groups")
    y = np.repeat(np.float32([-2.0, 0.0, 2.0]), 4)
    z = np.asarray(posterior.sample(index, array(y), num_samples=2000)["z"]).mean(0)
    # A mean of four measurements weighs 4 against 1 of the prior, whose mean is 0 by symmetry.
    np.testing.assert_allclose(z, [-1.6, 0.0, 1.6], atol=0.15)
