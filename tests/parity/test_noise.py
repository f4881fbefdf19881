# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every kernel has a twin: same densities, spreads, characteristic functions and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as numpyro_dist
import pyro.distributions as pyro_dist
import pytest
import torch
from every import KERNELS, STATIONARY

import numpyro_spread
import pyro_spread

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 4))
SCALES = 0.2 + RNG.random(4)
FACTOR = RNG.normal(size=(4, 2))
CHANNEL = RNG.dirichlet(np.full(4, 0.5), size=4).T + 2 * np.eye(4)
CHANNEL = CHANNEL / CHANNEL.sum(0)


def both(name):
    """The same kernel in both packages."""
    kernel = KERNELS[name]
    return kernel.build(pyro_spread, torch.tensor), kernel.build(numpyro_spread, jnp.asarray)


def values(name):
    """Values of a site and noisy ones, as both backends have them."""
    kernel = KERNELS[name]
    x = kernel.x((3,))
    torch.manual_seed(0)
    y = kernel.build(pyro_spread, torch.tensor)(torch.tensor(x), kernel.event_dim).sample()
    return x, y.numpy()


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours.detach().numpy(), np.asarray(theirs), **TOLERANCE)


@pytest.mark.parametrize("name", KERNELS)
def test_log_density_and_its_gradient_in_x(name):
    ours, theirs = both(name)
    (x, y), dims = values(name), KERNELS[name].event_dim
    point = torch.tensor(x, requires_grad=not KERNELS[name].discrete)
    log_prob = ours(point, dims).log_prob(torch.tensor(y))
    assert_same(log_prob, theirs(jnp.asarray(x), dims).log_prob(jnp.asarray(y)))
    if KERNELS[name].discrete:
        return  # labels have no gradient
    log_prob.sum().backward()

    def total(x):
        return theirs(x, dims).log_prob(jnp.asarray(y)).sum()

    assert_same(point.grad, jax.grad(total)(jnp.asarray(x)))


@pytest.mark.parametrize("name", KERNELS)
def test_gradient_in_every_parameter(name):
    kernel = KERNELS[name]
    (x, y), dims = values(name), kernel.event_dim
    ours = {n: torch.tensor(float(v) if np.isscalar(v) else v) for n, v in kernel.params.items()}
    for param in ours.values():
        param.requires_grad_()
    noise = kernel.build(pyro_spread, torch.tensor, **ours)
    noise(torch.tensor(x), dims).log_prob(torch.tensor(y)).sum().backward()

    def total(params):
        noise = kernel.build(numpyro_spread, jnp.asarray, **params)
        return noise(jnp.asarray(x), dims).log_prob(jnp.asarray(y)).sum()

    theirs = jax.grad(total)({n: jnp.asarray(v, float) for n, v in kernel.params.items()})
    for param, value in ours.items():
        one, other = value.grad, theirs[param]
        if kernel.discrete:  # columns are probabilities: only what keeps their sum is a gradient
            one, other = one - one.mean(0), other - other.mean(0)
        assert_same(one, other)


@pytest.mark.parametrize("name", STATIONARY)
def test_characteristic_function(name):
    ours, theirs = both(name)
    shape = (KERNELS[name].size,) if ours.coupled_dims else KERNELS[name].event_shape
    omega = RNG.normal(size=(5, *shape)) * 3
    assert_same(
        ours.characteristic_function(torch.tensor(omega)),
        theirs.characteristic_function(jnp.asarray(omega)),
    )


def _distributions(dist, array):
    """Distributions that the Gaussian kernels spread exactly, in the backend's own classes."""
    covariance = np.eye(4) + 0.3 * FACTOR @ FACTOR.T
    mask = array(np.array([True, False, True]))
    delta = dist.Delta(array(X), event_dim=1)
    normal = dist.Normal(array(X), array(SCALES)).to_event(1)
    return {
        "delta": delta,
        "independent delta": dist.Delta(array(X)).to_event(1),
        "normal": normal,
        "masked": normal.mask(mask),
        "expanded": dist.Delta(array(X[0]), event_dim=1).expand((3,)),
        "multivariate": dist.MultivariateNormal(array(X), array(covariance)),
        "low rank": dist.LowRankMultivariateNormal(array(X), array(FACTOR), array(SCALES)),
        "mixture": dist.MixtureSameFamily(
            dist.Categorical(probs=array(np.array([0.2, 0.3, 0.5]))), delta
        ),
    }


ADDING = {
    "gaussian": lambda p, array: p.GaussianNoise(0.3),
    "gaussian-per-element": lambda p, array: p.GaussianNoise(array(SCALES)),
    "low-rank": lambda p, array: p.LowRankGaussianNoise(0.3, array(FACTOR)),
}


@pytest.mark.parametrize("kernel", ADDING)
@pytest.mark.parametrize("name", _distributions(numpyro_dist, np.asarray))
def test_spread(kernel, name):
    ours = ADDING[kernel](pyro_spread, torch.tensor)
    theirs = ADDING[kernel](numpyro_spread, jnp.asarray)
    one = ours.spread(_distributions(pyro_dist, torch.as_tensor)[name])
    other = theirs.spread(_distributions(numpyro_dist, jnp.asarray)[name])
    assert tuple(one.batch_shape) == other.batch_shape
    assert tuple(one.event_shape) == other.event_shape
    assert_same(one.log_prob(torch.tensor(Y)), other.log_prob(jnp.asarray(Y)))


def test_channel():
    probs = RNG.dirichlet(np.ones(4), size=3)
    ours = pyro_spread.ChannelNoise(torch.tensor(CHANNEL))
    theirs = numpyro_spread.ChannelNoise(jnp.asarray(CHANNEL))
    labels = np.array([0, 3, 2])
    assert_same(ours(torch.tensor(labels)).probs, theirs(jnp.asarray(labels)).probs)
    assert_same(
        ours.spread(pyro_dist.Categorical(torch.tensor(probs))).log_prob(torch.tensor(labels)),
        theirs.spread(numpyro_dist.Categorical(jnp.asarray(probs))).log_prob(jnp.asarray(labels)),
    )


def test_symmetric_channel():
    assert_same(
        pyro_spread.ChannelNoise.symmetric(5, 0.3).matrix,
        numpyro_spread.ChannelNoise.symmetric(5, 0.3).matrix,
    )


def test_public_names_are_the_same():
    assert set(pyro_spread.__all__) == set(numpyro_spread.__all__)


def _exp(package):
    dist = pyro_dist if package is pyro_spread else numpyro_dist
    return dist.transforms.ExpTransform()


def test_the_same_mistake_gives_the_same_message():
    mistakes = [
        lambda p, zeros: p.GaussianNoise(-1.0),
        lambda p, zeros: p.StudentTNoise(float("nan"), 1.0),
        lambda p, zeros: p.ChannelNoise.symmetric(3, 1.0),
        lambda p, zeros: p.GaussianNoise(zeros((3,)) + 1)(zeros((4, 2)), 1),
        lambda p, zeros: p.LowRankGaussianNoise(0.1, zeros((3, 1)))(zeros((4,)), 1),
        lambda p, zeros: p.TransformedNoise(_exp(p), 0.3),
        lambda p, zeros: p.SpreadELBO({"x": 0.3}),
        lambda p, zeros: p.SpreadELBO({"x": p.GaussianNoise(1.0)}, data={"w": "images"}),
    ]
    for mistake in mistakes:
        with pytest.raises((TypeError, ValueError)) as ours:
            mistake(pyro_spread, torch.zeros)
        with pytest.raises((TypeError, ValueError)) as theirs:
            mistake(numpyro_spread, jnp.zeros)
        assert type(ours.value) is type(theirs.value)
        assert str(ours.value) == str(theirs.value)


def test_low_rank_density_keeps_its_digits_in_single_precision():
    """Woodbury's identity alone loses whole nats here: its two terms are near 1e6 each."""
    size, rank, scale = 784, 5, 0.01
    factor = RNG.normal(size=(size, rank))
    x = RNG.random(size=(3, size))
    y = x + scale * RNG.normal(size=x.shape) + RNG.normal(size=(3, rank)) @ factor.T
    covariance = scale**2 * np.eye(size) + factor @ factor.T
    difference = y - x
    mahalanobis = (difference * np.linalg.solve(covariance, difference.T).T).sum(-1)
    exact = -0.5 * (size * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + mahalanobis)

    def single(array):
        return np.asarray(array, np.float32)

    ours = pyro_spread.LowRankGaussianNoise(scale, torch.tensor(single(factor)))
    theirs = numpyro_spread.LowRankGaussianNoise(scale, jnp.asarray(single(factor)))
    one = ours(torch.tensor(single(x)), 1).log_prob(torch.tensor(single(y)))
    other = theirs(jnp.asarray(single(x)), 1).log_prob(jnp.asarray(single(y)))
    np.testing.assert_allclose(one.numpy(), exact, rtol=2e-6)
    np.testing.assert_allclose(np.asarray(other), exact, rtol=2e-6)
