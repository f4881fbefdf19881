# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The spread handler, noise that is learned or annealed, and training in NumPyro."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density
from numpyro_linear import ADAM, NOISE, D, N, S, data, no_guide, point

from numpyro_spread import DeterministicGenerator, GaussianNoise, SpreadELBO, spread

# --- callable noise ------------------------------------------------------------------------------


def test_annealed_scale_reaches_the_kernel_under_jit():
    def noise(x, scale):
        return {"x": GaussianNoise(scale)}

    def annealed(x, scale):
        point(x)

    loss = SpreadELBO(noise)
    params = {"g": jnp.array(0.0)}
    run = jax.jit(
        lambda s: loss.loss(
            random.key(0), params, annealed, lambda x, scale: None, jnp.zeros((N, D)), s
        )
    )
    # y / s is the same draw, so that only the normaliser moves.
    difference = run(2.0) - run(0.5)
    np.testing.assert_allclose(difference, N * D * np.log(4.0), rtol=1e-4)


def test_learned_scale_is_trained_when_registered_and_refused_otherwise():
    def noise(x):
        scale = numpyro.param("scale", 0.5, constraint=constraints.positive)
        return {"x": GaussianNoise(scale)}

    loss = SpreadELBO(noise)
    svi = SVI(point, loss.register(point, no_guide), ADAM, loss)
    result = svi.run(random.key(0), 5, data(), progress_bar=False)
    assert not np.isclose(result.params["scale"], 0.5)
    with pytest.raises(ValueError, match=r"'scale'.*register"):
        SVI(point, no_guide, ADAM, loss).run(random.key(0), 1, data(), progress_bar=False)


# --- the handler ---------------------------------------------------------------------------------


def test_three_spellings_of_the_handler_agree():
    def inner(y):
        numpyro.sample("x", dist.Delta(jnp.zeros(3)), obs=y)

    y = jnp.arange(3.0)
    expected = dist.Normal(0.0, S).log_prob(y).sum()

    def within(y):
        with spread(noise=NOISE):
            inner(y)

    for fn in (spread(inner, NOISE), spread(noise=NOISE)(inner), within):
        np.testing.assert_allclose(log_density(fn, (y,), {}, {})[0], expected, rtol=1e-6)
    assert functools.partial(spread(inner, NOISE)).func.__name__ == "inner"


def test_plate_inside_and_outside_of_the_handler():
    def row(y):
        numpyro.sample("x", dist.Delta(jnp.array(0.0)), obs=y)

    def outside(y):
        with numpyro.plate("p", 3):
            spread(row, NOISE)(y)

    def inside(y):
        with numpyro.plate("p", 3):
            row(y)

    y = jnp.arange(3.0)
    expected = dist.Normal(0.0, S).log_prob(y).sum()
    for fn in (outside, spread(inside, NOISE)):
        np.testing.assert_allclose(log_density(fn, (y,), {}, {})[0], expected, rtol=1e-6)


def location(y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", 20):
        numpyro.sample("x", dist.Delta(jnp.broadcast_to(z, (20,))), obs=y)


def location_posterior(y):
    precision = 1 + 20 / S**2
    return y.sum() / S**2 / precision, precision**-0.5


def test_nuts_samples_the_posterior_of_the_spread_model():
    y = 0.7 + S * random.normal(random.key(0), (20,))
    mcmc = MCMC(NUTS(spread(location, NOISE)), num_warmup=100, num_samples=400, progress_bar=False)
    mcmc.run(random.key(1), y)
    mean, std = location_posterior(y)
    z = mcmc.get_samples()["z"]
    assert abs(z.mean() - mean) < 0.3 * std
    assert abs(z.std() / std - 1) < 0.3


@pytest.mark.parametrize("around", ["spread", "plain"])
def test_auto_normal(around):
    y = 0.7 + S * random.normal(random.key(0), (20,))
    auto = AutoNormal(spread(location, NOISE))
    if around == "spread":  # a fixed, noisy data set under a stock ELBO
        svi = SVI(spread(location, NOISE), auto, optax.adam(0.02), Trace_ELBO(num_particles=10))
    else:
        loss = SpreadELBO(NOISE, Trace_ELBO(num_particles=10))
        svi = SVI(location, loss.register(location, auto), optax.adam(0.02), loss)
    result = svi.run(random.key(1), 800, y, progress_bar=False)
    mean, std = location_posterior(y)
    assert abs(auto.median(result.params)["z"] - mean) < std


def test_predictive_is_clean():
    def generate(x=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Delta(2 * z), obs=x)

    def guide(x=None):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1.0))

    options = {"guide": guide, "params": {"m": 3.0}, "num_samples": 5}
    for fn in (generate, spread(generate, NOISE)):
        samples = Predictive(fn, num_samples=5)(random.key(0))
        np.testing.assert_array_equal(samples["x"], 2 * samples["z"])
        fitted = Predictive(fn, return_sites=["x", "z"], **options)(random.key(0))
        np.testing.assert_array_equal(fitted["x"], 2 * fitted["z"])


# --- it trains -----------------------------------------------------------------------------------


def test_linear_generator_finds_the_clean_principal_subspace():
    """Delta-PCA: A A' is U_k L_k U_k' of the clean covariance, whatever the noise."""
    size, rank, number = 5, 2, 500
    rng = np.random.default_rng(0)
    U, _ = np.linalg.qr(rng.normal(size=(size, size)))
    x = rng.normal(size=(number, size)) * np.sqrt([4.0, 2.0, 0.3, 0.2, 0.1]) @ U.T
    x -= x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x / number)
    clean = vectors[:, -rank:] * values[-rank:] @ vectors[:, -rank:].T

    def pca(x):
        A = numpyro.param("A", lambda key: 0.3 * random.normal(key, (rank, size)))
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(rank), 1.0).to_event(1))
            numpyro.sample("x", DeterministicGenerator(z @ A, event_dim=1), obs=x)

    def linear(x):
        V = numpyro.param("V", lambda key: 0.3 * random.normal(key, (size, rank)))
        L = numpyro.param("L", 0.3 * jnp.eye(rank), constraint=constraints.lower_cholesky)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.MultivariateNormal(x @ V, scale_tril=L))

    loss = SpreadELBO({"x": GaussianNoise(1.0)})
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-2, 1000))
    svi = SVI(pca, loss.register(pca, linear), optimizer, loss)
    A = svi.run(random.key(0), 1000, jnp.asarray(x), progress_bar=False).params["A"]
    error = np.linalg.norm(A.T @ A - clean) / np.linalg.norm(clean)
    # Noise on the data side only would give L_k - s², an error of 0.3.
    assert error < 0.02


def test_a_registered_guide_is_still_the_guide():
    """It runs without data in Predictive, and an autoguide keeps its methods."""
    noise = {"x": GaussianNoise(0.3)}

    def model(x=None):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Delta(z), obs=x)

    loss = SpreadELBO(noise)
    guide = loss.register(model, AutoNormal(spread(model, noise)))
    svi = SVI(model, guide, ADAM, loss)
    result = svi.run(random.key(0), 5, jnp.array(1.0), progress_bar=False)
    for call in ((), (None,)):
        draws = Predictive(model, guide=guide, params=result.params, num_samples=3)(
            random.key(1), *call
        )
        assert draws["x"].shape == (3,)
    assert set(guide.median(result.params)) == {"z"}


def test_subsets_are_traced_without_drawing_from_the_prior():
    """An improper prior has no sampler; the check of what is observed needs none."""

    def model(x):
        w = numpyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), ()))
        with numpyro.plate("data", 6, subsample_size=2) as index:
            numpyro.sample("x", dist.Delta(jnp.full(2, w)), obs=x[index])

    def guide(x):
        numpyro.sample("w", dist.Normal(numpyro.param("loc", 0.0), 1.0))

    svi = SVI(model, guide, ADAM, SpreadELBO({"x": GaussianNoise(0.3)}))
    result = svi.run(random.key(0), 3, jnp.arange(6.0), progress_bar=False)
    assert jnp.isfinite(result.losses).all()
