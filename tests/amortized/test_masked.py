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


def test_what_all_elements_see_stays():
    kept = np.array([[[0, 1], [0, 0]]], bool)
    t, outer = np.arange(4.0).reshape(1, 2, 2, 1), np.arange(2.0).reshape(1, 2, 1, 1)
    seen = np.ones((1, 1, 1, 3))
    found, wide, same = stand_ins((t, outer, seen), kept)
    np.testing.assert_array_equal(found, np.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(wide, np.zeros((1, 2, 2, 1)))
    assert same is seen


def test_masks_of_all_sites_of_a_group_count():
    group = Group((variable("a"), variable("b", (2,)), variable("c")))
    one = np.array([[1, 1, 0, 0]], bool)
    whole = np.ones((1, 4, 2), bool)
    whole[0, 0, 1] = False
    found = kept_latents(group, {"a": one, "b": whole}, 1)
    np.testing.assert_array_equal(found, [[0, 1, 0, 0]])
    assert kept_latents(group, {"other": one}, 1) is None


BACKENDS = {
    pyro_spread: (pyro, pyro.distributions, pyro.poutine.mask, torch.as_tensor),
    numpyro_spread: (numpyro, numpyro.distributions, handlers.mask, jnp.asarray),
}


@pytest.mark.filterwarnings("ignore:the model runs once for every simulation")
@pytest.mark.parametrize("spread", BACKENDS)
def test_latents_that_are_masked_do_not_count_for_data_outside_of_their_plate(spread):
    ppl, dist, mask, array = BACKENDS[spread]

    def model(counts, x=None):
        with ppl.plate("groups", 4, dim=-1), mask(mask=counts):
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
        mean = (z * counts).sum(-1) / counts.sum()
        ppl.sample("x", dist.Normal(mean, 0.1), obs=x)

    counts = array(np.array([True, False, True, False]))
    guide = spread.AutoAmortized(model, observed="x", exchangeable=True)
    posterior = spread.amortize(
        model, counts, guide=guide, num_simulations=600, max_steps=40, progress_bar=False
    )
    z = np.asarray(posterior.sample(counts, array(np.float32(1.0)), num_samples=2000)["z"])
    # The mean of two has variance 1/2, as has what they differ by.
    np.testing.assert_allclose(z[:, [0, 2]].mean(0), 1 / 1.02, atol=0.15)


@pytest.mark.parametrize("method", ["importance", "nuts"])
@pytest.mark.parametrize("spread", BACKENDS)
def test_masked_latents_are_not_refined(spread, method):
    ppl, dist, mask, array = BACKENDS[spread]

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


@pytest.mark.parametrize("spread", BACKENDS)
def test_masked_latents_that_others_see_by_a_summary_are_refused(spread):
    ppl, dist, mask, array = BACKENDS[spread]

    def model(counts, x=None):
        with ppl.plate("groups", 3, dim=-1), mask(mask=counts):
            ppl.sample("z", dist.Normal(0.0, 1.0))
        with ppl.plate("items", 4, dim=-2):
            w = ppl.sample("w", dist.Normal(0.0, 1.0))
            ppl.sample("x", dist.Normal(w, 1.0), obs=x)

    guide = spread.AutoAmortized(model, observed="x", exchangeable=True)
    counts = array(np.array([True, False, True]))
    with pytest.raises(
        ValueError, match=r"Latents \['z'\] are masked, and \['w'\], in other plates"
    ):
        spread.amortize(model, counts, guide=guide, num_simulations=100, progress_bar=False)


@pytest.mark.parametrize("spread", BACKENDS)
def test_what_is_masked_of_the_data_may_be_anything(spread):
    ppl, dist, mask, array = BACKENDS[spread]

    def model(counts, x=None, k=None):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        with ppl.plate("items", 4, dim=-1), mask(mask=counts):
            ppl.sample("x", dist.Normal(z, 0.5), obs=x)
            ppl.sample("k", dist.Poisson(1.0), obs=k)

    counts = array(np.array([True, True, False, False]))
    x, k = np.float32([1.0, 1.2, np.nan, np.inf]), np.float32([1.0, 0.0, 2.0, np.nan])
    few = {"num_simulations": 300, "max_steps": 20, "ensemble": 1, "progress_bar": False}
    few |= {"observed": ["x", "k"], "rounds": 2}
    with pytest.raises(ValueError, match="data of site 'x' hold NaN or inf"):
        spread.amortize(model, counts, x_observed={"x": x[::-1].copy(), "k": k}, **few)
    posterior = spread.amortize(model, counts, x_observed={"x": x, "k": k}, **few)
    given = counts, array(x), array(k)
    plain = counts, array(np.float32([1.0, 1.2, 9.0, 9.0])), array(np.float32([1, 0, 5, 5]))
    draws = posterior.sample(*given, num_samples=50)
    one, other = (np.asarray(posterior.log_prob(draws, *args)) for args in (given, plain))
    np.testing.assert_array_equal(one, other)
    assert np.isfinite(one).all()
    region = posterior.truncation
    assert region.contains({"z": np.float32([0.9, np.nan])}).tolist() == [True, False]
    weighted = posterior.refine(*given, num_samples=50)
    chains = posterior.refine(*given, method="nuts", num_samples=80, num_warmup=50, num_chains=1)
    assert weighted["z"].shape == (50,)
    assert chains["z"].shape == (80,)
    for found, least in ((weighted, 40), (chains, 20)):
        z = np.asarray(found["z"])
        assert len(np.unique(z)) > least
        assert abs(z.mean() - 8.8 / 9) < 0.25  # of sd 1/3
