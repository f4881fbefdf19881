# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every kernel has a twin: same densities, spreads, characteristic functions and gradients."""

import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pytest
import torch
from every import KERNELS, STATIONARY
from twins import BACKENDS, Pyro, assert_refused_alike, compare, compare_gradients

import numpyro_spread
import pyro_spread

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 4))
SCALES = 0.2 + RNG.random(4)
FACTOR = RNG.normal(size=(4, 2))
CHANNEL = RNG.dirichlet(np.full(4, 0.5), size=4).T + 2 * np.eye(4)
CHANNEL = CHANNEL / CHANNEL.sum(0)


def built(b, name, **params):
    """The kernel in a backend, and the number of its event dims."""
    return KERNELS[name].build(b.package, b.array, **params), KERNELS[name].event_dim


def values(name):
    """Values of a site and noisy ones, as both backends have them."""
    x = KERNELS[name].x((3,))
    torch.manual_seed(0)
    noise, dims = built(Pyro, name)
    return x, noise(torch.tensor(x), dims).sample().numpy()


@pytest.mark.parametrize("name", KERNELS)
def test_log_density_and_its_gradient_in_x(name):
    x, y = values(name)

    def log_prob(b, x):
        noise, dims = built(b, name)
        return noise(x, dims).log_prob(b.array(y))

    if KERNELS[name].discrete:  # labels have no gradient
        compare(lambda b: log_prob(b, b.array(x)))
    else:
        compare_gradients(log_prob, x)


@pytest.mark.parametrize("name", KERNELS)
def test_gradient_in_every_parameter(name):
    x, y = values(name)
    names = list(KERNELS[name].params)

    def log_prob(b, *params):
        noise, dims = built(b, name, **dict(zip(names, params, strict=True)))
        return noise(b.array(x), dims).log_prob(b.array(y))

    def gradients(b):
        params = [np.asarray(KERNELS[name].params[n], float) for n in names]
        grads = b.value_and_gradients(lambda *params: log_prob(b, *params), *params)[1]
        # Columns are probabilities: only what keeps their sum is a gradient.
        return [grad - grad.mean(0) for grad in grads] if KERNELS[name].discrete else grads

    compare(gradients)


@pytest.mark.parametrize("name", STATIONARY)
def test_characteristic_function(name):
    kernel = KERNELS[name]
    shape = (kernel.size,) if built(Pyro, name)[0].coupled_dims else kernel.event_shape
    omega = RNG.normal(size=(5, *shape)) * 3
    compare(lambda b: built(b, name)[0].characteristic_function(b.array(omega)))


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
    def result(b):
        noise = ADDING[kernel](b.package, b.array)
        spread = noise.spread(_distributions(b.dist, b.array)[name])
        return tuple(spread.batch_shape), tuple(spread.event_shape), spread.log_prob(b.array(Y))

    compare(result)


def test_channel():
    probs, labels = RNG.dirichlet(np.ones(4), size=3), np.array([0, 3, 2])

    def result(b):
        noise, given = b.package.ChannelNoise(b.array(CHANNEL)), b.array(labels)
        spread = noise.spread(b.dist.Categorical(b.array(probs)))
        return noise(given).probs, spread.log_prob(given)

    compare(result)


def test_symmetric_channel():
    compare(lambda b: b.package.ChannelNoise.symmetric(5, 0.3).matrix)


@pytest.mark.parametrize("name", STATIONARY)
def test_noise_on_nan_is_nan(name):
    """Failed simulations are for the loss to count: no distribution may refuse them first."""
    x = KERNELS[name].x((2,))
    x[0] = np.nan
    with numpyro.validation_enabled():
        drawn = [np.asarray(built(b, name)[0].draw(*b.key, b.array(x))) for b in BACKENDS]
    for y in drawn:
        assert np.isnan(y[0]).all()
        assert np.isfinite(y[1]).all()


def test_public_names_are_the_same():
    # Steps of NumPyro are compiled by jax.jit as they are.
    assert set(pyro_spread.__all__) - {"compiled"} == set(numpyro_spread.__all__)


def test_the_same_mistake_gives_the_same_message():
    mistakes = [
        lambda b: b.package.GaussianNoise(-1.0),
        lambda b: b.package.StudentTNoise(float("nan"), 1.0),
        lambda b: b.package.ChannelNoise.symmetric(3, 1.0),
        lambda b: b.package.GaussianNoise(b.np.ones(3))(b.np.zeros((4, 2)), 1),
        lambda b: b.package.LowRankGaussianNoise(0.1, b.np.zeros((3, 1)))(b.np.zeros(4), 1),
        lambda b: b.package.TransformedNoise(b.dist.transforms.ExpTransform(), 0.3),
        lambda b: b.package.SpreadELBO({"x": 0.3}),
        lambda b: b.package.SpreadELBO({"x": b.package.GaussianNoise(1.0)}, data={"w": "images"}),
    ]
    for mistake in mistakes:
        assert_refused_alike(mistake, error=(TypeError, ValueError))


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

    def log_prob(b):
        single_factor, single_x, single_y = (
            b.array(np.asarray(array, np.float32)) for array in (factor, x, y)
        )
        return b.package.LowRankGaussianNoise(scale, single_factor)(single_x, 1).log_prob(single_y)

    for b in BACKENDS:
        np.testing.assert_allclose(np.asarray(log_prob(b)), exact, rtol=2e-6)
