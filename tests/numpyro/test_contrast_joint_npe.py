# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Neural posterior estimation: JointContrastELBO with KL and a guide that has a density."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers
from numpyro_contrast import PARAMS, X
from numpyro_joint_contrast import dense_guide, hierarchical, model, run

from numpyro_spread import KL, GaussianNoise, JointContrastELBO


def test_kl_with_a_density_needs_no_critic():
    x = jnp.zeros(20_000)
    loss = JointContrastELBO(divergence=KL())
    value, grads = jax.value_and_grad(lambda p: run(loss, model, dense_guide, x, p))(PARAMS)

    def cross_entropy(p):
        # E of (z - m x)²: z ~ N(mu, 1), x = z + N(0, 1/4)
        square = (1 - p["m"]) ** 2 * (1 + 0.3**2) + p["m"] ** 2 * 0.25
        return 0.5 * jnp.log(2 * jnp.pi * p["s"] ** 2) + square / (2 * p["s"] ** 2)

    exact, exact_grads = jax.value_and_grad(cross_entropy)(PARAMS)
    np.testing.assert_allclose(value, exact, atol=0.02)
    for name in ("m", "s"):
        np.testing.assert_allclose(grads[name], exact_grads[name], atol=0.06)
    assert grads["mu"] == 0  # the simulator is not trained by it
    noisy = JointContrastELBO(divergence=KL(), noise={"x": GaussianNoise(2.0)})
    assert run(noisy, model, dense_guide, x, PARAMS) > value + 0.5


def test_scales_and_masks_do_not_change_the_mean():
    first = jnp.arange(6) < 3

    def within(handler):
        def guide(x):
            with handler:
                dense_guide(x)

        return guide

    loss = JointContrastELBO(divergence=KL())
    plain = run(loss, model, dense_guide, X, PARAMS)
    scaled = run(loss, model, within(handlers.scale(scale=2.0)), X, PARAMS)
    halves = [
        run(loss, model, within(handlers.mask(mask=mask)), X, PARAMS) for mask in (first, ~first)
    ]
    np.testing.assert_allclose(scaled, plain, rtol=1e-5)
    np.testing.assert_allclose(sum(halves) / 2, plain, rtol=1e-5)
    assert abs(halves[0] - plain) > 1e-3


def test_a_delta_is_no_density_for_posterior_estimation():
    def point(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Delta(0.7 * x))

    with pytest.raises(ValueError, match="'z' has no density"):
        JointContrastELBO(divergence=KL()).loss(random.key(0), PARAMS, model, point, X)


def test_posterior_estimation_counts_data_and_not_elements():
    def known(x):
        mu = numpyro.sample("mu", dist.Uniform(-100.0, 100.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Uniform(mu - 100.0, mu + 100.0))

    def rows(x):
        with numpyro.plate("rows", len(x), dim=-2):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            with numpyro.plate("columns", 3, dim=-1):
                b = numpyro.sample("b", dist.Normal(a, 1.0))
                numpyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def rows_guide(x):
        with numpyro.plate("rows", len(x), dim=-2):
            numpyro.sample("a", dist.Uniform(-100.0, 100.0))
            with numpyro.plate("columns", 3, dim=-1):
                numpyro.sample("b", dist.Uniform(-100.0, 100.0))

    loss = JointContrastELBO(divergence=KL())

    def value_of(*args):
        return jax.jit(lambda key: loss.loss(key, {}, *args))(random.key(0))

    value = value_of(hierarchical, known, X)
    np.testing.assert_allclose(value, (1 + len(X)) * np.log(200.0), rtol=1e-6)
    value = value_of(rows, rows_guide, jnp.zeros((4, 3)))
    np.testing.assert_allclose(value, 4 * np.log(200.0), rtol=1e-6)
