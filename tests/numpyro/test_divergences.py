# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Divergences in float32: stable, finite, under jit, and clear about what they refuse."""

import every
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every import instances

import numpyro_spread
from numpyro_spread import (
    KL,
    ChiSquared,
    JSPi,
    TotalVariation,
)
from numpyro_spread.divergences import non_saturating_loss

TRAINED = [*instances(numpyro_spread, every.TRAINED), numpyro_spread.JSPi(0.01)]
ALL = [*TRAINED, TotalVariation()]
METHODS = ["data_term", "model_term", "generator_loss"]


def value_and_gradient(function, x):
    return jax.jit(lambda x: (function(x), jax.grad(lambda x: function(x).sum())(x)))(x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("divergence", TRAINED, ids=repr)
def test_float32_is_finite_and_right_to_80(divergence, method):
    x = np.linspace(-80, 80, 641)
    function = getattr(divergence, method)
    single = value_and_gradient(function, jnp.asarray(x, jnp.float32))
    with jax.enable_x64(True):
        double = value_and_gradient(function, jnp.asarray(x))
    for one, other in zip(single, double, strict=True):
        assert one.dtype == jnp.float32
        assert other.dtype == jnp.float64
        assert jnp.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-7)


def test_small_log_ratios_keep_their_digits():
    x = jnp.array([-1e-4, 1e-4])
    np.testing.assert_allclose(ChiSquared().data_term(x), np.expm1([-1e-4, 1e-4]), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("divergence", TRAINED, ids=repr)
def test_infinite_log_ratios_give_no_nan(divergence, method):
    for output in value_and_gradient(getattr(divergence, method), jnp.array([jnp.inf, -jnp.inf])):
        assert not jnp.isnan(output).any()


def test_jspi_is_finite_where_its_limit_is():
    infinite = jnp.array([jnp.inf])
    estimate = JSPi(0.3).estimate(infinite, -infinite)
    np.testing.assert_allclose(estimate, JSPi(0.3).upper, rtol=1e-6)


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_nan_stays_visible(divergence):
    nan = jnp.array([jnp.nan, 0.0])
    assert jnp.isnan(divergence.estimate(nan, nan))


@pytest.mark.parametrize("divergence", ALL, ids=repr)
def test_weight_zero_leaves_a_sample_out_with_its_gradient(divergence):
    x = jnp.array([0.5, jnp.nan, jnp.inf, -1.0])
    mask = jnp.array([True, False, False, True])
    kept = jnp.array([0.5, -1.0])

    def estimate(x):
        return divergence.estimate(x, x, mask, mask)

    np.testing.assert_allclose(estimate(x), divergence.estimate(kept, kept), rtol=1e-6)
    gradient = jax.grad(estimate)(x)
    assert jnp.isfinite(gradient).all()
    assert (gradient[1:3] == 0).all()


@pytest.mark.parametrize("weights", [None, np.ones(10_000)], ids=["none", "ones"])
def test_a_mean_of_finite_terms_is_finite(weights):
    x = jnp.full((10_000,), 80.0)  # the plain sum, 5.5e38, is beyond float32
    assert jnp.isfinite(ChiSquared().estimate(x, x, weights))


def test_jit_with_the_divergence_as_a_static_argument_and_vmap():
    p, q = jnp.arange(6.0).reshape(2, 3), -jnp.ones((2, 3))
    traced = []

    def estimate(divergence, p, q):
        traced.append(divergence)
        return divergence.estimate(p, q)

    compiled = jax.jit(estimate, static_argnums=0)
    for pi in (0.3, 0.3, 0.4):
        expected = [JSPi(pi).estimate(*pair) for pair in zip(p, q, strict=True)]
        batch = jax.vmap(lambda p, q, pi=pi: compiled(JSPi(pi), p, q))(p, q)
        np.testing.assert_allclose(batch, expected, rtol=1e-6)
    assert traced == [JSPi(0.3), JSPi(0.4)]


@pytest.mark.parametrize("pi", [0.0, 1.0, -0.1, float("nan")])
def test_prior_outside_its_range(pi):
    with pytest.raises(
        ValueError, match=r"pi must lie.*KL\(\) \(pi -> 0\).*ReverseKL\(\) \(pi -> 1"
    ):
        JSPi(pi)


@pytest.mark.parametrize("pi", ["0.5", None, True, np.array(0.5)])
def test_prior_that_is_no_number(pi):
    with pytest.raises(TypeError, match="pi must be a plain Python number"):
        JSPi(pi)


def test_prior_that_is_traced():
    with pytest.raises(TypeError, match="pi must be a plain Python number"):
        jax.jit(lambda pi: JSPi(pi).estimate(jnp.zeros(2), jnp.zeros(2)))(0.5)


@pytest.mark.parametrize("bad", [0.5, [0.5], np.zeros(3, int), jnp.zeros(3, int)], ids=repr)
def test_what_is_not_a_floating_point_array(bad):
    good = jnp.zeros(3)
    with pytest.raises(TypeError, match=r"log_ratio_p must be a jax.Array of floating-point"):
        KL().estimate(bad, good)
    with pytest.raises(TypeError, match="log_ratio_q must be"):
        KL().estimate(good, bad)
    for divergence in TRAINED:
        with pytest.raises(TypeError, match="log_ratio_q must be"):
            divergence.generator_loss(bad)
    with pytest.raises(TypeError, match="logits must be"):
        non_saturating_loss(bad)


def test_bad_weights():
    x = jnp.zeros((4, 3))
    with pytest.raises(TypeError, match=r"weights_q must be a jax.Array .* got list"):
        KL().estimate(x, x, None, [1.0])
    for shape in [(4,), (2, 4, 3)]:
        with pytest.raises(ValueError, match=r"weights_p of shape \(.*\) does not .*\(4, 3\)"):
            KL().estimate(x, x, jnp.ones(shape))


def test_total_variation_does_not_train():
    with pytest.raises(NotImplementedError, match=r"zero almost.*SquaredHellinger\(\) or JSPi"):
        TotalVariation().generator_loss(jnp.zeros(3))


def test_non_saturating_loss_does_not_vanish_in_float32():
    value, gradient = value_and_gradient(non_saturating_loss, jnp.array([-80.0, 0.0, 80.0]))
    np.testing.assert_allclose(value, [80.0, np.log(2), np.exp(-80.0)], rtol=1e-5)
    np.testing.assert_allclose(gradient, [-1.0, -0.5, -np.exp(-80.0)], rtol=1e-5)
