# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Data, plates and sites of SpreadELBO in NumPyro: how data are found, scaled and spread."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers
from numpyro.distributions import transforms
from numpyro.infer import SVI, Trace_ELBO
from numpyro_linear import ADAM, NOISE, D, N, S, data, evaluate, no_guide

from numpyro_spread import (
    ChannelNoise,
    DeterministicGenerator,
    GaussianNoise,
    LaplaceNoise,
    LowRankGaussianNoise,
    SpreadELBO,
    TransformedNoise,
)


def test_mini_batches_are_scaled_to_the_full_size():
    def batched(x, size):
        g = numpyro.param("g", 0.0)
        with numpyro.plate("data", size, subsample_size=x.shape[0]):
            numpyro.sample("x", dist.Delta(jnp.full(x.shape, g), event_dim=1), obs=x)

    params = {"g": jnp.array(0.0)}
    loss = SpreadELBO(NOISE)
    small = loss.loss(random.key(0), params, batched, lambda *_: None, data(), N)
    large = loss.loss(random.key(0), params, batched, lambda *_: None, data(), 10 * N)
    np.testing.assert_allclose(large, 10 * small, rtol=1e-5)


@pytest.mark.parametrize(
    ("way", "particles"), [("index", 1), ("index", 2), ("subsample", 1), ("slice", 2), ("take", 1)]
)
def test_plates_may_subsample_full_data(way, particles):
    def subsampling(x):
        g = numpyro.param("g", 0.0)
        with numpyro.plate("data", x.shape[0], subsample_size=2) as ind:
            batch = {
                "index": lambda: x[ind],
                "subsample": lambda: numpyro.subsample(x, event_dim=1),
                "slice": lambda: x[:2],
                "take": lambda: jnp.take(x, ind, axis=0),
            }[way]()
            numpyro.sample("x", dist.Delta(jnp.full(batch.shape, g), event_dim=1), obs=batch)

    loss = SpreadELBO(NOISE, Trace_ELBO(num_particles=particles))
    svi = SVI(subsampling, loss.register(subsampling, no_guide), ADAM, loss)
    x = jnp.zeros((400, D))
    state = svi.init(random.key(0), x)
    _, value = jax.jit(svi.update)(state, x)
    # Two data stand for 400: the plate scale is there.
    expected = 400 * D * (0.5 * np.log(2 * np.pi * S**2) + 0.5)
    assert abs(value - expected) < 5 * 200 * np.sqrt(2 * D / 2)


@pytest.mark.parametrize("movement", ["reshape", "transpose", "cast", "asarray", "squeeze", "jit"])
def test_reshapes_of_the_spread_value_may_be_observed(movement):
    moves = {
        "reshape": lambda x: x.reshape(-1),
        "transpose": lambda x: x.T,
        "cast": lambda x: x.astype(jnp.float16),
        "asarray": lambda x: jnp.asarray(x),
        "squeeze": lambda x: x[None].squeeze(0),
        "jit": jax.jit(lambda x: x.reshape(D, N)),
    }

    def moving(x):
        value = moves[movement](x)
        numpyro.sample("x", dist.Delta(jnp.zeros(value.shape), event_dim=value.ndim), obs=value)

    for loss in (evaluate, jax.jit(evaluate, static_argnums=(0, 1, 2))):
        assert np.isfinite(loss(SpreadELBO(NOISE), moving, no_guide, {}, data()))


@pytest.mark.parametrize("passing", ["positional", "keyword", "second", "named", "static"])
def test_data_are_found_where_they_are_passed(passing):
    def by_argument(a, x=None, b=None):
        value = {"named": b}.get(passing, x)
        numpyro.sample("x", dist.Delta(jnp.zeros_like(value), event_dim=2), obs=value)

    def guide(a, x=None, b=None):
        pass

    loss, args, kwargs = SpreadELBO(NOISE), (None,), {"x": data()}
    if passing == "positional":
        args, kwargs = (None, data()), {}
    if passing == "named":
        loss, kwargs = SpreadELBO(NOISE, data={"x": "b"}), {"b": data()}
    if passing == "second":
        args, kwargs = (None, data(), None), {}
    if passing == "static":
        svi = SVI(by_argument, loss.register(by_argument, guide), ADAM, loss, x=data())
        assert np.isfinite(svi.run(random.key(0), 2, None, progress_bar=False).losses).all()
        return
    assert np.isfinite(loss.loss(random.key(0), {}, by_argument, guide, *args, **kwargs))


def test_several_sites_are_spread_at_once_by_their_own_kernels():
    x, labels = data(), jnp.array([0, 1, 2, 2, 1, 0])

    def joint(x, c):
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Delta(jnp.zeros((N, D)), event_dim=1), obs=x)
            numpyro.sample("c", dist.Delta(jnp.zeros(N, int)), obs=c)

    seen = []
    channel = ChannelNoise.symmetric(3, 0.6)
    loss = SpreadELBO({"x": GaussianNoise(S), "c": channel})
    value = loss.loss(random.key(0), {}, joint, lambda *args: seen.append(args), x, labels)
    y, flipped = seen[0]
    expected = dist.Normal(0.0, S).log_prob(y).sum() + jnp.log(channel.matrix[flipped, 0]).sum()
    np.testing.assert_allclose(value, -expected, rtol=1e-5)
    assert flipped.dtype == labels.dtype


@pytest.mark.parametrize(
    "kernel",
    [
        GaussianNoise(jnp.array([0.1, 0.5, 1.0])),
        LaplaceNoise(0.3),
        LowRankGaussianNoise(0.3, np.ones((D, 1))),
        TransformedNoise(transforms.SoftplusTransform(), GaussianNoise(0.2)),
    ],
    ids=lambda kernel: type(kernel).__name__,
)
@pytest.mark.parametrize("rows", [False, True], ids=["all", "rows"])
def test_kernels_under_plates_and_indices(kernel, rows):
    def indexed(x):
        with numpyro.plate("data", N, subsample_size=2 if rows else N) as ind:
            value = x[ind] if rows else x
            numpyro.sample("x", DeterministicGenerator(jnp.zeros(value.shape), 1), obs=value)

    assert np.isfinite(evaluate(SpreadELBO({"x": kernel}), indexed, no_guide, {}, data()))


def test_masks_and_images():
    mask = jnp.array([True, False] * 3)

    def masked(x):
        with numpyro.plate("data", N), handlers.mask(mask=mask):
            numpyro.sample("x", dist.Delta(jnp.zeros((N, 1, D, 1)), event_dim=3), obs=x)

    seen = []
    loss = SpreadELBO({"x": LowRankGaussianNoise(S, np.ones((D, 1)))})
    value = loss.loss(random.key(0), {}, masked, seen.append, data().reshape(N, 1, D, 1))
    y = seen[0].reshape(N, D)
    normal = dist.MultivariateNormal(jnp.zeros(D), S**2 * jnp.eye(D) + 1.0)
    np.testing.assert_allclose(value, -(normal.log_prob(y) * mask).sum(), rtol=1e-4)
