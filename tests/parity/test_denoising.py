# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The mean of clean data given noisy ones, against closed forms, in both backends."""

import numpy as np
import pytest
import torch
from twins import BACKENDS, Pyro, assert_refused_alike, compare, in_both

A, SCALE, DRAWS = 1.3, 0.8, 1000
Y = np.array([-1.5, -0.2, 0.1, 0.7, 2.0])
TANH = A * np.tanh(A * Y / SCALE**2)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def log_normal(x, variance):
    return -0.5 * x**2 / variance


def log_mixture(b, y, scale=SCALE):
    """Log density of data at A and -A with noise, up to a constant."""
    return b.np.logaddexp(log_normal(y - A, scale**2), log_normal(y + A, scale**2))


def test_tweedie_of_the_exact_density_is_a_tanh():
    def denoised(b):
        noise = b.package.GaussianNoise(SCALE)
        return b.package.denoise(b.array(Y), noise, log_density=lambda y: log_mixture(b, y))

    np.testing.assert_allclose(compare(denoised), TANH, rtol=1e-10)


def test_a_critic_gives_the_log_ratio_and_the_model_the_rest():
    """The exact critic of the data against a model that spreads N(0, 1)."""

    def denoised(b):
        noise = b.package.GaussianNoise(SCALE)
        clean = b.dist.Normal(b.np.zeros(len(Y)), 1.0)
        model = noise.spread(clean)

        def logit(y):
            return log_mixture(b, y) - log_normal(y, 1 + SCALE**2)

        return b.package.denoise(
            b.array(Y), {"x": noise}, log_density=lambda y: logit(y) + model.log_prob(y)
        )

    np.testing.assert_allclose(compare(denoised), TANH, rtol=1e-10)


@pytest.mark.parametrize("kind", ["vector", "low rank"])
def test_noise_that_differs_between_elements(kind):
    """x ~ N(0, C): E[x | y] = C (C + noise)^-1 y."""
    root, factor = RNG.normal(size=(2, 3, 3))
    y, scales = RNG.normal(size=(4, 3)), np.array([0.3, 0.6, 0.9])
    covariance = root @ root.T + np.eye(3)
    added = np.diag(scales**2) + (factor @ factor.T if kind == "low rank" else 0.0)

    def denoised(b):
        args = (b.array(scales), b.array(factor))
        make = b.package.LowRankGaussianNoise if kind == "low rank" else b.package.GaussianNoise
        noise = make(*args[: 2 if kind == "low rank" else 1])
        total = b.dist.MultivariateNormal(b.np.zeros(3), b.array(covariance + added))
        return b.package.denoise(b.array(y), noise, log_density=total.log_prob)

    exact = y @ np.linalg.solve(covariance + added, covariance)
    np.testing.assert_allclose(compare(denoised), exact, rtol=1e-8)


def test_levels_of_every_datum():
    level = np.array([0.5, 1.0, 2.0, 1.0, 0.5])

    def denoised(b):
        noise = b.package.MultiLevelNoise(b.package.GaussianNoise(SCALE), [0.5, 1.0, 2.0])
        at = b.array(level)
        return b.package.denoise(
            b.array(Y), noise, log_density=lambda y: log_mixture(b, y, SCALE * at), level=at
        )

    np.testing.assert_allclose(compare(denoised), A * np.tanh(A * Y / (SCALE * level) ** 2))


def by_guide(b, noise, model, guide, **options):
    first = b.pick({}, {"rng_key": b.key[0] if b.key else None, "params": {}})
    if b is Pyro:
        torch.manual_seed(0)
    return np.asarray(
        b.package.denoise(
            b.array(Y), {"x": noise}, model, guide, num_samples=DRAWS, **first, **options
        )
    )


@in_both
@pytest.mark.parametrize("told", [False, True])
def test_the_exact_guide_of_two_points(b, told):
    level = np.array([0.5, 1.0, 2.0, 1.0, 0.5]) if told else 1.0
    scale = SCALE * level

    def model(x):
        with b.plate("data", len(Y)):
            z = b.sample("z", b.dist.Bernoulli(b.np.full((len(Y),), 0.5)))
            b.sample("x", b.dist.Delta(A * (2 * z - 1)), obs=x)

    def guide(x):
        with b.plate("data", len(Y)):
            b.sample("z", b.dist.Bernoulli(logits=2 * A * x / SCALE**2))

    def asking(x, x_level=None):
        with b.plate("data", len(Y)):
            b.sample("z", b.dist.Bernoulli(logits=2 * A * x / (SCALE * x_level) ** 2))

    noise = b.package.GaussianNoise(SCALE)
    if told:
        noise = b.package.MultiLevelNoise(noise, [0.5, 1.0, 2.0])
        found = by_guide(b, noise, model, asking, level=level)
    else:
        found = by_guide(b, noise, model, guide)
    exact = A * np.tanh(A * Y / scale**2)
    error = A / np.cosh(A * Y / scale**2) / np.sqrt(DRAWS)
    assert (abs(found - exact) < 4.5 * error + 1e-6).all()


@in_both
@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_the_exact_guide_of_a_linear_model(b, sigma):
    """With a likelihood of its own scale the mean of x given y and z is not that of the model."""
    w, prior = 1.4, 1.0
    total = w**2 + sigma**2 + SCALE**2

    def model(x):
        with b.plate("data", len(Y)):
            z = b.sample("z", b.dist.Normal(b.np.zeros(len(Y)), prior))
            fn = b.dist.Normal(w * z, sigma) if sigma else b.dist.Delta(w * z)
            b.sample("x", fn, obs=x)

    variance = 1 - w**2 / total

    def guide(x):
        with b.plate("data", len(Y)):
            b.sample("z", b.dist.Normal(w * x / total, np.sqrt(variance)))

    found = by_guide(b, b.package.GaussianNoise(SCALE), model, guide)
    exact = (w**2 + sigma**2) / total * Y
    share = SCALE**2 / (SCALE**2 + sigma**2)  # of z in the mean given y and z
    error = share * w * np.sqrt(variance / DRAWS)
    np.testing.assert_allclose(found, exact, atol=4.5 * error)


def test_refusals():
    def denoise(b, noise, *args, **options):
        return b.package.denoise(b.array(Y), noise(b), *args, **options)

    def gaussian(b):
        return b.package.GaussianNoise(1.0)

    def levels(b):
        return b.package.MultiLevelNoise(gaussian(b), [1.0, 2.0])

    def moving(b):
        return b.package.annealed(gaussian(b), lambda step: 1.0)

    def laplace(b):
        return b.package.LaplaceNoise(1.0)

    def square(y):
        return -(y**2)

    def two_sites(b):
        def model(x):
            for name in "ab":
                b.sample(name, b.dist.Delta(0 * x).to_event(1), obs=x)

        first = b.pick({}, {"rng_key": b.key[0] if b.key else None, "params": {}})
        denoise(b, gaussian, model, lambda x: None, num_samples=1, **first)

    def with_density(b):
        def model(x):
            b.sample("x", b.dist.Normal(0 * x, 1.0).to_event(1), obs=x)

        first = b.pick({}, {"rng_key": b.key[0] if b.key else None, "params": {}})
        denoise(b, laplace, model, lambda x: None, num_samples=1, **first)

    def levels_and_guide(b, noise, **options):
        def asking(x, x_level=None):
            return None

        first = b.pick({}, {"rng_key": b.key[0] if b.key else None, "params": {}})
        denoise(b, noise, lambda x: None, asking, num_samples=1, **options, **first)

    def at_x(b):
        return {"x": levels(b)}

    mistakes = {
        "level= belongs to a site": lambda b: levels_and_guide(b, levels, level=abs(Y)),
        "level= is that of MultiLevelNoise, and GaussianNoise": lambda b: levels_and_guide(
            b, lambda b: {"x": gaussian(b)}, level=abs(Y)
        ),
        "level= is that of MultiLevelNoise": lambda b: denoise(
            b, gaussian, log_density=square, level=abs(Y)
        ),
        "ask for 'x_level'. Give level=": lambda b: levels_and_guide(b, at_x),
        "needs either model and guide": lambda b: denoise(b, gaussian),
        "needs either": lambda b: denoise(b, gaussian, lambda x: None),
        "needs either model": lambda b: denoise(
            b, gaussian, lambda x: None, lambda x: None, log_density=square
        ),
        "noise must be a kernel": lambda b: denoise(b, lambda b: 0.3, log_density=square),
        r"scale of annealed\(...\)": lambda b: denoise(b, moving, log_density=square),
        "is of Gaussian noise, not of LaplaceNoise": lambda b: denoise(
            b, laplace, log_density=square
        ),
        "needs the level of every datum": lambda b: denoise(b, levels, log_density=square),
        "one number for every datum": lambda b: denoise(b, gaussian, log_density=lambda y: y[:2]),
        r"observes \['a', 'b'\]": two_sites,
        "site 'x': denoise: Tweedie's formula": with_density,
        "num_samples": lambda b: denoise(b, gaussian, log_density=square, num_samples=0),
    }
    for match, mistake in mistakes.items():
        assert_refused_alike(mistake, match=match)
    numpyro = BACKENDS[1]
    with pytest.raises(TypeError, match="rng_key= and params="):
        denoise(numpyro, gaussian, lambda x: None, lambda x: None)
