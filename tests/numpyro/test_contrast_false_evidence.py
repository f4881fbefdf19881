# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""When PriorContrastELBO says that its critic is no evidence, and the check on held-out draws."""

import warnings

import jax
import jax.numpy as jnp
import numpyro
import optax
import pytest
from flax import linen
from jax import random
from numpyro.infer import SVI
from numpyro_contrast import ALL, CRITIC, Told, X, affine, guide, model, silent

from numpyro_spread import R1, FalseEvidenceWarning, PriorContrastELBO, concat_sites


def test_a_critic_that_sees_everything_is_no_evidence():
    def far(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", affine(x + 100.0, 0.1))

    loss = PriorContrastELBO(Told(lambda values, x: values["z"] - 50.0), adaptive=False)

    evaluate = jax.jit(lambda key: loss.loss(key, ALL, model, far, X))

    def often():
        jax.block_until_ready([evaluate(random.key(seed)) for seed in range(55)])

    with pytest.warns(FalseEvidenceWarning, match=r"look at loss.held_out_check"):
        often()
    # A critic is not perfect that is right about one side only.
    for logit in (-5.0, 5.0):
        adaptive = PriorContrastELBO(Told(lambda values, x, logit=logit: logit + silent(values)))
        evaluate = jax.jit(lambda key, loss=adaptive: loss.loss(key, ALL, model, far, X))
        jax.block_until_ready([evaluate(random.key(seed)) for seed in range(55)])
        assert not adaptive._monitor.warned


def test_a_value_that_does_not_hold_is_reported():
    loss = PriorContrastELBO(concat_sites(linen.Dense(1), "z"), adaptive=False)
    registered = loss.register(model, guide)
    svi = SVI(model, registered, optax.sgd(0.1), loss)
    params = svi.get_params(svi.init(random.key(0), X))
    # A critic that says nothing claims that the guide is the prior.
    params[CRITIC] = jax.tree.map(jnp.zeros_like, params[CRITIC])
    options = {"num_steps": 20, "num_draws": 50}
    with pytest.warns(FalseEvidenceWarning, match=r"overstates the ELBO by .* nats"):
        report = loss.held_out_check(random.key(1), params, model, registered, X, **options)
    assert report.is_false()
    assert report.num_draws == 50


def test_the_fresh_critic_is_not_regularised():
    def checked(regularizer):
        loss = PriorContrastELBO(concat_sites(linen.Dense(1), "x", "z"), regularizer=regularizer)
        svi = SVI(model, loss.register(model, guide), optax.sgd(0.0), loss)
        params = svi.get_params(svi.init(random.key(0), X))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FalseEvidenceWarning)
            return loss.held_out_check(
                random.key(1), params, model, guide, X, num_steps=20, num_draws=4
            )

    assert checked(R1(100.0)).fresh_estimate == checked(None).fresh_estimate
