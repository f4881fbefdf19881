# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Numbers that have nothing to do with the latents are made faint, and no others."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
import pyro
import pyro.distributions
import pytest
import torch

import numpyro_spread
import pyro_spread
from spread_core.amortized.screening import FAINT, MANY, MOST, weights


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_distractors_are_faint(rng):
    latents = rng.normal(size=(2000, 2))
    data = latents[:, :1] + rng.normal(size=(2000, 4))
    spread = np.exp(latents[:, 1:]) * rng.normal(size=(2000, 4))  # only its size tells
    heavy = rng.standard_t(2, size=(2000, 60))
    found = weights(latents, np.concatenate([data, heavy, spread], 1))
    assert (found[:4] == 1).all()
    assert (found[-4:] == 1).all()
    np.testing.assert_allclose(found[4:-4], FAINT)


def test_covariates_are_kept_since_the_responses_go_with_them(rng):
    latents = rng.normal(size=(3000, 2))
    covariates = rng.normal(size=(3000, 20, 2))
    responses = (covariates * latents[:, None]).sum(-1) + 0.3 * rng.normal(size=(3000, 20))
    distractors = rng.normal(size=(3000, 40))
    numbers = np.concatenate([covariates.reshape(3000, -1), responses, distractors], 1)
    found = weights(latents, numbers)
    assert (found[:60] == 1).all()
    np.testing.assert_allclose(found[60:], FAINT)


def test_many_faint_hints_are_kept(rng):
    latents = rng.normal(size=(500, 1))
    numbers = 0.12 * latents + rng.normal(size=(500, 200))
    numbers[:, 0] = latents[:, 0]  # one that is seen by itself
    assert (weights(latents, numbers) == 1).all()


def test_pairs_that_tell_together_are_kept(rng):
    correlation = rng.uniform(-0.9, 0.9, size=(3000, 1))
    one = rng.normal(size=(3000, 10))
    other = correlation * one + np.sqrt(1 - correlation**2) * rng.normal(size=(3000, 10))
    distractors = rng.normal(size=(3000, 20))
    seen = rng.normal(size=(3000, 1)) + 3 * correlation
    found = weights(correlation, np.concatenate([seen, one, other, distractors], 1))
    assert (found[:21] == 1).all()
    np.testing.assert_allclose(found[21:], FAINT)


def test_very_many_are_kept(rng):
    latents = rng.normal(size=(500, 1))
    numbers = np.concatenate([latents, rng.normal(size=(500, MOST))], 1)
    assert (weights(latents, numbers) == 1).all()
    assert (weights(latents, numbers[:, 1:]) == 1).all()  # nothing to go by
    assert (weights(latents, numbers[:, :-1]) < 1).sum() == MOST - 1


def test_few_numbers_and_those_that_never_change_are_kept(rng):
    latents = rng.normal(size=(500, 1))
    assert (weights(latents, rng.normal(size=(500, MANY))) == 1).all()
    assert (weights(latents, np.ones((500, 50))) == 1).all()


@pytest.mark.parametrize(
    ("spread", "ppl", "xp"), [(pyro_spread, pyro, torch), (numpyro_spread, numpyro, jnp)]
)
def test_a_posterior_tells_how_many_are_faint(spread, ppl, xp):
    which = np.repeat(np.float32([1.0, 0.0]), [3, 40])

    def model(x=None):
        mean = ppl.sample("mean", ppl.distributions.Normal(0.0, 1.0))
        x_given = ppl.distributions.Normal(mean[..., None] * xp.asarray(which), 1.0)
        ppl.sample("x", x_given.to_event(1), obs=x)

    options = {"num_simulations": 400, "max_steps": 1, "ensemble": 1, "progress_bar": False}
    posterior = spread.amortize(model, observed="x", **options)
    assert posterior.record["faint"] == {"global": 40}
    assert "; made faint, as they tell of no latent: 40 numbers of the data>" in repr(posterior)
    fitted = posterior.guide.context.fit(*posterior.guide.columns_of(posterior.simulations))
    np.testing.assert_allclose(fitted["inputs"]["global"]["weights"], np.where(which, 1, FAINT))
