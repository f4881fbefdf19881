# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What is an error where values are known is NaN or inf where jit hides them: never a number."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.tree_util import Partial
from numpyro import handlers
from numpyro.distributions import transforms

from numpyro_spread import (
    ChannelNoise,
    GaussianKernel,
    GaussianNoise,
    ImplicitDistribution,
    LaplaceNoise,
    LowRankGaussianNoise,
    PriorContrastELBO,
    SemiImplicitELBO,
    SpreadELBO,
    StudentTNoise,
    TransformedNoise,
    concat_sites,
)

X = jnp.array([0.5, 1.5])
LABELS = jnp.array([0, 2])
CHANNEL = 0.9 * jnp.eye(3) + 0.1 / 3


def density(kernel, x=X, y=None):
    return kernel(x).log_prob(x if y is None else y).sum()


def affine(scale):
    return TransformedNoise(transforms.AffineTransform(0.0, scale), GaussianNoise(0.3))


def power(x):
    kernel = TransformedNoise(transforms.PowerTransform(0.5), GaussianNoise(0.3))
    return kernel(x).log_prob(X).sum()


def delta(log_density, v=X, kernel=None):
    kernel = kernel or GaussianNoise(0.3)
    return kernel.spread(dist.Delta(v, log_density=log_density)).log_prob(v).sum()


def channel(matrix):
    return density(ChannelNoise(matrix), LABELS)


BROKEN = {
    "scale 0": (lambda s: density(GaussianNoise(s)), 0.3, 0.0),
    "scale below 0": (lambda s: density(GaussianNoise(s)), 0.3, -0.3),
    "vector scale": (lambda s: density(LaplaceNoise(s)), jnp.ones(2), jnp.array([1.0, -1.0])),
    "df": (lambda df: density(StudentTNoise(df, 1.0)), 3.0, -1.0),
    "low rank": (
        lambda s: LowRankGaussianNoise(s, jnp.ones((2, 1)))(X, 1).log_prob(X),
        0.3,
        -0.3,
    ),
    "bandwidth": (lambda b: GaussianKernel(b)(X[:, None], X[:, None]).sum(), 1.0, -1.0),
    "bandwidths": (lambda b: GaussianKernel([1.0, b])(X[:, None], X[:, None]).sum(), 1.0, -1.0),
    "variance": (
        lambda v: GaussianKernel(1.0).convolved(v)(X[:, None], X[:, None]).sum(),
        0.1,
        -0.1,
    ),
    "columns": (channel, CHANNEL, CHANNEL * 1.1),
    "negative entry": (channel, CHANNEL, CHANNEL + jnp.array([[-1.0], [1.0], [0.0]])),
    "singular": (channel, CHANNEL, jnp.full((3, 3), 1 / 3)),
    "label": (lambda x: density(ChannelNoise(CHANNEL), x, LABELS), LABELS, LABELS + 2),
    "slope of 0": (lambda s: density(affine(s)), 2.0, 0.0),
    "outside of the domain": (power, X, X - 1.0),
    "density of a Delta": (delta, jnp.zeros(2), jnp.array([0.0, 1.0])),
    "density of a discrete Delta": (
        lambda d: delta(d, LABELS, ChannelNoise(CHANNEL)),
        jnp.zeros(2),
        jnp.array([0.0, 1.0]),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_jit_hides_spoils_the_result(what):
    function, good, bad = BROKEN[what]
    good, bad = jnp.asarray(good), jnp.asarray(bad)
    np.testing.assert_allclose(jax.jit(function)(good), function(good), rtol=1e-5)
    assert not jnp.isfinite(jax.jit(function)(bad))
    with pytest.raises((ValueError, NotImplementedError)):
        function(bad)


def test_a_valid_parameter_keeps_its_gradient():
    def loss(scale):
        return density(GaussianNoise(scale), y=X + 1)

    expected = jax.grad(lambda s: dist.Normal(X, s).log_prob(X + 1).sum())(0.3)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.3), expected, rtol=1e-5)


def test_a_label_out_of_range_in_the_data():
    def model(x):
        with numpyro.plate("data", 2):
            numpyro.sample("x", dist.Categorical(jnp.array([0.2, 0.3, 0.5])), obs=x)

    loss = SpreadELBO({"x": ChannelNoise(CHANNEL)})

    def value(x):
        return loss.loss(jax.random.key(0), {}, model, lambda x: None, x)

    assert jnp.isfinite(jax.jit(value)(LABELS))
    for labels in (LABELS + 1, LABELS - 1):
        assert not jnp.isfinite(jax.jit(value)(labels))
        with pytest.raises(ValueError, match="'x'"):
            value(labels)


class Critic(eqx.Module):
    def __call__(self, features):
        return features.sum(-1)


def _push(scale, eps):
    return scale * eps + 1e3


def contrast(guide, *names):
    def model(x, *rest):
        with numpyro.plate("data", 2):
            for name in names:
                numpyro.sample(name, dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    loss = PriorContrastELBO(concat_sites(Critic(), "z"), num_moment_draws=8)

    def value(*args):
        params = {"discriminator$params": Critic()}
        return loss.loss(jax.random.key(0), params, model, guide, X, *args)

    return value


def test_a_collapsed_guide():
    def guide(x, scale):
        with numpyro.plate("data", 2):
            base = dist.Normal(0.0, 1.0)
            numpyro.sample("z", ImplicitDistribution(Partial(_push, scale), base, ()))

    value = contrast(guide, "z")
    assert jnp.isfinite(jax.jit(value)(1.0))
    assert jnp.isnan(jax.jit(value)(1e-6))
    with pytest.raises(ValueError, match="'z'"):
        value(1e-6)


def test_masks_of_one_critic_that_differ():
    def guide(x, first, second):
        base = dist.Normal(0.0, 1.0)
        with numpyro.plate("data", 2):
            for name, mask in (("z", first), ("u", second)):
                fn = ImplicitDistribution(Partial(_push, 1.0), base, ())
                with handlers.mask(mask=mask):
                    numpyro.sample(name, fn)

    value = contrast(guide, "z", "u")
    first, second = jnp.array([True, False]), jnp.array([True, True])
    assert jnp.isfinite(jax.jit(value)(first, first))
    assert jnp.isnan(jax.jit(value)(first, second))
    with pytest.raises(ValueError, match="masks"):
        value(first, second)


def test_draws_outside_of_a_support():
    def model(x, low):
        numpyro.sample("z", dist.Uniform(0.0, 1.0))

    def guide(x, low):
        fn = Partial(lambda low, eps: low + 0.1 * jax.nn.sigmoid(eps), low)
        numpyro.sample("z", ImplicitDistribution(fn, dist.Normal(0.0, 1.0), ()))

    loss = SemiImplicitELBO({"z": GaussianNoise(0.1)}, num_mixture=2)

    def value(low):
        return loss.loss(jax.random.key(0), {}, model, guide, X, low)

    assert jnp.isfinite(jax.jit(value)(0.5))
    assert jnp.isnan(jax.jit(value)(1.5))
    with pytest.raises(ValueError, match="'z'"):
        value(1.5)
