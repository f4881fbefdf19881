# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Masked latents are not trained on, and not refined."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
import pyro
import pyro.distributions
import pytest
import torch
from numpyro import handlers

import numpyro_spread
import pyro_spread
from spread_core.amortized.layout import Group, Variable
from spread_core.amortized.masked import kept_latents, stand_ins


def variable(name, event_shape=()):
    return Variable(name, (4,), event_shape, {"groups": -1}, {"groups": -1})


def test_elements_that_count_stand_in_for_the_others_of_their_run():
    kept = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    t = np.arange(16.0).reshape(4, 4, 1)
    found, wide = stand_ins((t, np.concatenate([t, -t], -1)), kept)
    expected = [[0, 1, 0, 1], [6, 6, 6, 6], [8, 9, 10, 11], [12, 13, 14, 15]]
    np.testing.assert_array_equal(found[..., 0], expected)
    np.testing.assert_array_equal(wide[..., 1], -found[..., 0])


def test_rows_of_another_shape_stay_as_they_are():
    parts = np.zeros((2, 4, 1)), np.ones((2, 1, 3))
    assert stand_ins(parts, np.zeros((2, 4), bool)) is parts


def test_masks_of_all_sites_of_a_group_count():
    group = Group((variable("a"), variable("b", (2,)), variable("c")))
    one = np.array([[1, 1, 0, 0]], bool)
    whole = np.ones((1, 4, 2), bool)
    whole[0, 0, 1] = False
    found = kept_latents(group, {"a": one, "b": whole}, 1)
    np.testing.assert_array_equal(found, [[0, 1, 0, 0]])
    assert kept_latents(group, {"other": one}, 1) is None


@pytest.mark.parametrize("method", ["importance", "nuts"])
@pytest.mark.parametrize("spread", [pyro_spread, numpyro_spread])
def test_masked_latents_are_not_refined(spread, method):
    if spread is pyro_spread:
        ppl, dist, mask, array = pyro, pyro.distributions, pyro.poutine.mask, torch.as_tensor
    else:
        ppl, dist, mask, array = numpyro, numpyro.distributions, handlers.mask, jnp.asarray

    def model(counts, x=None):
        with ppl.plate("groups", 6, dim=-1), mask(mask=counts):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            ppl.sample("x", dist.Normal(z, 1.0), obs=x)

    counts = array(np.array([True] * 4 + [False] * 2))
    few = {"num_simulations": 100, "max_steps": 5, "ensemble": 2, "progress_bar": False}
    posterior = spread.amortize(model, counts, observed="x", **few)
    rounds = {"rounds": 2, "x_observed": np.zeros(6, np.float32)}
    with pytest.raises(ValueError, match=r"what is masked of latents \['z'\]. Use rounds=1"):
        spread.amortize(model, counts, observed="x", **few, **rounds)
    with pytest.raises(ValueError, match=r"leaves out what is masked of its latents \['z'\]"):
        posterior.refine(counts, array(np.zeros(6, np.float32)), method=method)
