# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit's draws: noise, gradients, subsampling, Predictive, quantiles, and training."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen
from numpyro import handlers
from numpyro.infer import SVI, Predictive
from numpyro_many_sites import (
    SHAPES,
    X,
    disturbed,
    init,
    local_model,
    many,
    many_sites,
    shapes,
    traced,
    two_sites,
)
from scipy import stats

from numpyro_spread import AutoImplicit, PriorContrastELBO, concat_sites

# --- draws and gradients -------------------------------------------------------------------------


def test_every_draw_has_noise_of_its_own():
    guide, params = many()

    def particle(key):
        return handlers.substitute(handlers.seed(guide, key), data=params)()

    values = jax.jit(jax.vmap(particle))(jax.random.split(jax.random.key(0), 5))
    assert shapes(values) == {name: (5, *shape) for name, shape in SHAPES.items()}
    for value in values.values():
        assert len(np.unique(value.reshape(5, -1), axis=0)) == 5
    draws = traced(guide, params=params)["_auto_inner"]["fn"].sample(jax.random.key(0), (7,))
    assert draws.shape == (7, 6, 3)
    assert len(np.unique(draws)) == draws.size


@pytest.mark.parametrize("hidden", [(), (5, 4)])
def test_gradient_reaches_all_params(hidden):
    guide = AutoImplicit(two_sites, 2, hidden, init_samples=4)
    params = disturbed(init(guide))

    def total(params):
        values = handlers.substitute(handlers.seed(guide, 0), data=params)()
        return sum(jnp.sum(value**2) for value in values.values())

    for path, grad in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(params)):
        assert jnp.abs(grad).sum() > 0, path


def test_noise_dim():
    found = []

    def noise_size(**options):
        def look():
            sites = traced(AutoImplicit(many_sites, init_samples=2, **options))
            fns = [sites[site]["fn"] for site in ("_auto_latent", "_auto_inner")]
            found.append([fn.base_dist.event_shape[0] for fn in fns])

        jax.eval_shape(look)
        return found[-1]

    assert noise_size() == [4 + 8, 3 + 8]
    assert noise_size(noise_dim=0) == [4, 3]
    assert noise_size(noise_dim=2) == [6, 5]


def test_subsampled_params_of_the_data():
    guide = AutoImplicit(local_model, init_samples=4)
    params = disturbed(init(guide, X, size=2))
    assert params["auto_data_loc"].shape == (6, 1)
    assert params["auto_data_embedding"].shape == (6, 8)
    sites = traced(guide, X, size=2, params=params)
    assert sites["_auto_data"]["value"].shape == (2, 1)
    assert sites["z"]["scale"] == 3

    def total(params):
        return handlers.substitute(handlers.seed(guide, 0), data=params)(X, size=2)["z"].sum()

    grads = jax.jit(jax.grad(total))(params)
    chosen = np.isin(np.arange(6), sites["data"]["value"])
    for name in ("auto_data_loc", "auto_data_embedding"):
        assert ((grads[name] != 0).any(-1) == chosen).all()
    draws = guide.sample_posterior(jax.random.key(0), params, sample_shape=(3,))
    assert draws["z"].shape == (3, 6)


def test_plates_from_outside():
    def create_plates(x, size=None):
        return numpyro.plate("data", len(x), subsample_size=3)

    guide = AutoImplicit(local_model, create_plates=create_plates, init_samples=4)
    params = init(guide, X, size=2)
    params["auto_data_loc"] = 1000 * jnp.arange(6.0)[:, None]
    sites = traced(guide, X, size=2, params=params)
    assert sites["z"]["value"].shape == (3,)
    np.testing.assert_allclose(sites["z"]["value"], 1000 * sites["data"]["value"], atol=10)


def test_predictive():
    guide, params = many()
    predictive = Predictive(many_sites, guide=guide, params=params, num_samples=3)
    assert predictive(jax.random.key(0))["x"].shape == (3, 6)
    draws = Predictive(guide, params=params, num_samples=3)(jax.random.key(0))
    assert {name: draws[name].shape for name in SHAPES} == {
        name: (3, *shape) for name, shape in SHAPES.items()
    }
    assert len(np.unique(draws["mu"])) == 9


@pytest.mark.parametrize("sample_shape", [(), (2, 3)])
def test_sample_posterior(sample_shape):
    guide, params = many()
    key = jax.random.key(0)
    draws = guide.sample_posterior(key, params, sample_shape=sample_shape)
    assert shapes(draws) == {name: (*sample_shape, *shape) for name, shape in SHAPES.items()}
    assert len(np.unique(draws["mu"])) == draws["mu"].size
    fresh = AutoImplicit(many_sites, init_samples=4)  # params may be from another process
    assert shapes(fresh.sample_posterior(key, params, sample_shape=sample_shape)) == shapes(draws)


def test_sample_posterior_gives_deterministic_sites_where_the_model_can_run():
    def model(x, size=None):
        scale = numpyro.param("scale", 2.0)
        with numpyro.plate("data", 6, subsample_size=size):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.deterministic("twice", scale * z)

    guide = AutoImplicit(handlers.block(model, hide=[]), init_samples=4)
    params = {**init(guide, X), "scale": 5.0}
    draws = guide.sample_posterior(jax.random.key(0), params, X, sample_shape=(2,))
    np.testing.assert_allclose(draws["twice"], 5 * draws["z"], rtol=1e-6)
    assert set(guide.sample_posterior(jax.random.key(0), params)) == {"z"}
    guide = AutoImplicit(model, init_samples=4)
    init(guide, X, size=2)
    assert set(guide.sample_posterior(jax.random.key(0), params, X, size=2)) == {"z"}


def test_median_and_quantiles():
    def model():
        numpyro.sample("z", dist.Normal(3.0, 2.0))
        numpyro.sample("tau", dist.LogNormal(0.0, 1.0))
        numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))

    guide = AutoImplicit(model, init_samples=4)
    params = init(guide)
    loc, scale = params["auto_latent_loc"], params["auto_latent_scale"]
    probabilities = [0.1, 0.5, 0.9]
    found = guide.quantiles(params, probabilities)
    expected = loc[:2] + scale[:2] * stats.norm.ppf(probabilities)[:, None]
    error = float(5 * scale[:2].max() * 1.8 / math.sqrt(1000))
    got = jnp.stack([found["z"], jnp.log(found["tau"])], -1)
    np.testing.assert_allclose(got, expected, atol=error)
    median = guide.median(params)
    assert shapes(median) == {"z": (), "tau": (), "p": (3,)}
    np.testing.assert_allclose(median["z"], loc[0], atol=error)
    np.testing.assert_allclose(median["p"].sum(), 1, rtol=1e-5)


# --- training ------------------------------------------------------------------------------------


class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.silu(linen.Dense(32)(x)))


@pytest.mark.slow
def test_trains_to_a_correlated_posterior():
    def model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("sum", dist.Normal(z.sum(), 0.5), obs=3.0)

    guide = AutoImplicit(model, hidden=(16,))
    loss = PriorContrastELBO(concat_sites(Net(), "_auto_latent"))
    optimiser = optax.adam(optax.exponential_decay(1e-2, 1, 0.995))
    svi = SVI(model, loss.register(model, guide), optimiser, loss)
    params = svi.run(jax.random.key(0), 500, progress_bar=False).params
    draws = guide.sample_posterior(jax.random.key(1), params, sample_shape=(20000,))["z"]
    total, difference = draws.sum(-1), draws[:, 0] - draws[:, 1]
    # Exactly N(8/3, 2/9) and N(0, 2); at the prior both have variance 2, as any Gaussian guide
    # without correlations has equal variances.
    assert float(total.mean()) == pytest.approx(8 / 3, abs=0.2)
    assert float(difference.mean()) == pytest.approx(0, abs=0.4)
    assert float(total.var()) == pytest.approx(2 / 9, abs=0.1)
    assert float(difference.var()) == pytest.approx(2.0, abs=0.6)
