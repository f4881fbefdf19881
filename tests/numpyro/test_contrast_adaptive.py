# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The adaptive contrast of PriorContrastELBO: what it is, and of which draws it is made."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro_contrast import (
    CRITIC,
    KNOWN,
    PARAMS,
    Told,
    X,
    affine,
    exact_loss,
    guide,
    logits_of,
    mean_and_error,
    model,
    normal,
    silent,
    value_of,
)
from scipy import stats

from numpyro_spread import PriorContrastELBO
from numpyro_spread.infer._gaussian_contrast import GaussianContrast
from spread_core.moments import predictive_regret


@pytest.mark.parametrize("num_draws", [4, pytest.param(32, marks=pytest.mark.slow)])
def test_a_gaussian_guide_needs_no_critic_whatever_the_number_of_draws(num_draws):
    loss = PriorContrastELBO(Told(silent), num_moment_draws=num_draws, num_particles=4000)
    params = {**PARAMS, CRITIC: KNOWN}

    def both(key):
        return jax.value_and_grad(lambda p: loss.loss(key, p, model, guide, X))(params)

    (value, grads), (error, grad_errors) = mean_and_error(both)
    exact, exact_grads = jax.value_and_grad(exact_loss)(PARAMS, X)
    assert error < 0.03
    assert abs(value - exact) < 4.5 * error
    for name, grad in exact_grads.items():
        assert grad_errors[name] < 0.08
        assert abs(grads[name] - grad) < 4.5 * grad_errors[name], name


def test_the_contrast_is_the_predictive_student():
    draws = 2 + 3 * random.normal(random.key(0), (6, 4000))
    contrast = GaussianContrast.from_draws(draws[:5], 0)
    student = stats.t(4, scale=(1 + 1 / 5) ** 0.5)
    u = contrast.draw(random.key(1))
    further = contrast.standardise(draws[5])
    for sample in (u, further):
        assert stats.kstest(np.asarray(sample), student.cdf).pvalue > 0.01
        assert stats.kstest(np.asarray(sample), stats.norm.cdf).pvalue < 1e-4
    expected = student.logpdf(u) - np.log(contrast.scale) + predictive_regret(5)
    value = contrast.loc + contrast.scale * u
    np.testing.assert_allclose(contrast.log_prob(value), expected, rtol=1e-4, atol=1e-4)
    known = GaussianContrast(contrast.loc, contrast.scale, 0)
    assert stats.kstest(np.asarray(known.draw(random.key(1))), stats.norm.cdf).pvalue > 0.01
    gaussian = normal(value, contrast.loc, contrast.scale)
    np.testing.assert_allclose(known.log_prob(value), gaussian, rtol=1e-4, atol=1e-4)


def test_the_default_number_of_draws_follows_the_batch():
    seen = []

    def record(values, *args):
        seen.append(values.batch_shape)
        return jnp.zeros(values.batch_shape)

    shapes = []

    def watched(x):
        def fn(eps):
            shapes.append(eps.shape)
            return x + eps

        with numpyro.plate("data", len(x)):
            numpyro.sample("z", affine(x, 1.0))
            numpyro.sample("y", type(affine(x, 1.0))(fn, dist.Normal(0.0, 1.0), ()))

    def two(x):
        with numpyro.plate("data", len(x)):
            for name in ("z", "y"):
                numpyro.sample(name, dist.Normal(0.0, 1.0))

    loss = PriorContrastELBO({"z": Told(record), "y": Told(record)})
    params = {CRITIC: {"z": KNOWN, "y": KNOWN}}
    logits = logits_of(loss, params, two, watched, X)
    # Draws are made one by one, so that fn sees the batch alone; 128 in all for the critic.
    assert set(shapes) == {(6,)}
    assert set(seen) == {(6,)}
    assert logits["y"].p.shape == logits["y"].q.shape == (21, 6)
    many = logits_of(loss, params, two, watched, jnp.zeros(200))
    assert many["z"].data.shape == (200,)


def test_particles_are_independent_draws():
    params = {**PARAMS, CRITIC: KNOWN}
    seen = []

    def record(values, *args):
        jax.debug.callback(lambda z: seen.append(np.array(z)), values["z"])
        return jnp.zeros(values.batch_shape)

    many = {"num_particles": 5, "num_moment_draws": 8}
    loss = PriorContrastELBO(Told(record), num_critic_draws=1, **many)
    loss.loss(random.key(0), params, model, guide, X)
    jax.effects_barrier()
    # ELBO, guide side and contrast side of every particle; the first two are the same draws.
    draws = np.stack(seen)
    assert draws.shape == (15, 6)
    assert len(np.unique(draws[:, 0])) == 10
    one = PriorContrastELBO(Told(silent), num_moment_draws=8)
    evaluate = jax.jit(lambda key: one.loss(key, params, model, guide, X))
    alone = [evaluate(key) for key in random.split(random.key(3), 5)]
    for vectorize in (True, False):
        loss = PriorContrastELBO(Told(silent), vectorize_particles=vectorize, **many)
        together = value_of(loss, params, model, guide, X, seed=3)
        np.testing.assert_allclose(together, np.mean(alone), rtol=1e-5)
