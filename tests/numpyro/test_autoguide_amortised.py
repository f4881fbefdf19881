# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit with an encoder: features by data, mini-batches, plates and errors."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen, nnx
from numpyro import handlers
from numpyro_many_sites import SHAPES, X, disturbed, init, local_model, many_sites, shapes, traced

from numpyro_spread import AutoImplicit


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, size=None):
        return jnp.tanh(linen.Dense(4)(x[:, None]))


class Nnx(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(1, 4, rngs=nnx.Rngs(0))

    def __call__(self, x, size=None):
        return jnp.tanh(self.linear(x[:, None]))


class Equinox(equinox.Module):
    linear: equinox.nn.Linear

    def __init__(self):
        self.linear = equinox.nn.Linear(1, 4, key=jax.random.key(0))

    def __call__(self, x, size=None):
        return jnp.tanh(jax.vmap(self.linear)(x[:, None]))


@pytest.mark.parametrize("module", [Linen, Nnx, Equinox])
def test_encoder_is_trained_with_the_guide(module):
    x = jnp.asarray(X)
    guide = AutoImplicit(local_model, encoder=module(), init_samples=2000)
    params = init(guide, x=x)  # by keyword too
    draws = guide.sample_posterior(jax.random.key(0), params, x, sample_shape=(4000,))["z"]
    np.testing.assert_allclose(draws.mean(0), np.zeros(6), atol=0.25)
    np.testing.assert_allclose(draws.std(0), np.ones(6), atol=0.2)
    params = disturbed(params)
    assert "auto_encoder$params" in params
    assert not any("embedding" in name for name in params)

    def total(params):
        return (handlers.substitute(handlers.seed(guide, 0), data=params)(x)["z"] ** 2).sum()

    for path, grad in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(params)):
        assert jnp.abs(grad).sum() > 0, path
    assert len(np.unique(guide.median(params, x)["z"])) == 6


def test_amortised_plates_are_as_large_as_the_features():
    guide = AutoImplicit(local_model, encoder=Linen(), init_samples=4)
    params = init(guide, X)
    for count in (6, 3, 9):
        x = jnp.zeros(count)
        assert traced(guide, x, params=params)["z"]["value"].shape == (count,)
        draws = guide.sample_posterior(jax.random.key(0), params, x, sample_shape=(2,))
        assert draws["z"].shape == (2, count)


def test_features_of_all_data_are_subsampled():
    guide = AutoImplicit(local_model, encoder=lambda x, size: 4 * x[:, None], init_samples=4)
    params = init(guide, X, size=2)
    params["auto_data_heads"]["loc"]["kernel"] = jnp.full((1, 1), 1000.0)
    sites = traced(guide, X, size=2, params=params)
    expected = 4000 * X[sites["data"]["value"]]
    np.testing.assert_allclose(sites["z"]["value"], expected, atol=10)
    assert guide.sample_posterior(jax.random.key(0), params, X, 2)["z"].shape == (6,)


def test_batches_of_a_larger_data_set():
    def model(x):
        with numpyro.plate("data", 100, subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoImplicit(model, encoder=Linen(), init_samples=4)
    params = init(guide, X)
    for count in (6, 5):
        sites = traced(guide, jnp.zeros(count), params=params)
        assert sites["z"]["value"].shape == (count,)
        assert sites["z"]["scale"] == pytest.approx(100 / count)


def test_features_by_plates():
    features = {
        "outer": np.ones((2, 1, 3)),
        "inner": np.ones((6, 2)),
        "outer_inner": np.ones((2, 6, 4)),
    }
    guide = AutoImplicit(many_sites, encoder=lambda: features, init_samples=2)
    sites = jax.eval_shape(lambda: {name: traced(guide)[name]["value"] for name in SHAPES})
    assert shapes(sites) == SHAPES


def test_encoder_errors():
    with pytest.raises(TypeError, match=r"encoder must be a module of flax linen.*got 3"):
        AutoImplicit(local_model, encoder=3)

    def refused(error, message, output, model=local_model):
        with pytest.raises(error, match=message):
            traced(AutoImplicit(model, encoder=lambda *args: output, init_samples=2), X)

    refused(TypeError, "plates 'data' it returned 'text'", "text")
    refused(TypeError, "plates 'data' it returned None", {"wrong": np.ones((6, 1))})
    message = r"shape \(6,\) for the latents in the plates 'data', expected \(6, number of features"
    refused(ValueError, message, np.ones(6))
    refused(ValueError, r"'outer', expected \(2, 1, .*return a dict", np.ones((6, 1)), many_sites)
    refused(ValueError, r"'data', expected \(6, number of features\)\.$", {"data": np.ones(6)})

    def global_only(x):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))

    refused(ValueError, r"no latent.*in a plate: \['mu'\].*Leave encoder out", None, global_only)


def test_features_must_fit_plates_from_outside():
    guide = AutoImplicit(
        local_model,
        encoder=lambda x: np.ones((4, 2)),
        create_plates=lambda x: numpyro.plate("data", 6),
        init_samples=2,
    )
    with pytest.raises(ValueError, match=r"shape \(4, 2\).*'data', expected \(6, number"):
        traced(guide, X)
