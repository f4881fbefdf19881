# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit: shapes, where it starts, densities of the change of variables, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.autoguide import AutoGuideList
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

from numpyro_spread import AutoImplicit, ImplicitDistribution

# name -> prior of a global latent, with the number of its unconstrained values
PRIORS = {
    "real": (lambda: dist.Normal(1.0, 2.0), 1),
    "positive": (lambda: dist.HalfCauchy(5.0), 1),
    "interval": (lambda: dist.Uniform(2.0, 5.0), 1),
    "simplex": (lambda: dist.Dirichlet(jnp.ones(4)), 3),
    "corr-cholesky": (lambda: dist.LKJCholesky(3), 3),
    "vector": (lambda: dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), 2),
    "event": (lambda: dist.LogNormal(jnp.zeros((2, 3)), 1.0).to_event(2), 6),
    "batch": (lambda: dist.Exponential(jnp.ones(3)), 3),
    "batch-and-event": (lambda: dist.Dirichlet(jnp.ones((2, 3))), 4),
}


VECTORS = {
    "_auto_latent": (4,),
    "_auto_outer": (2, 1, 3),
    "_auto_inner": (6, 3),
    "_auto_outer_inner": (2, 6, 1),
}


# --- sites ---------------------------------------------------------------------------------------


def test_groups_and_shapes():
    guide, params = many()
    sites, model_sites = {}, {}

    @jax.jit
    def look(params):
        """The vectors, and what the sites that they cover give back."""
        sites.update(traced(guide, params=params))
        model_sites.update(traced(many_sites))
        found = {}
        for name in VECTORS:
            infer = sites[name]["infer"]
            covered = {site: sites[site]["value"] for site in infer["_covers"]}
            found[name] = sites[name]["value"], infer["_unconstrain"](covered)
        return found

    found = look(params)
    assert guide.implicit_sites[0] == "_auto_latent"
    assert set(guide.implicit_sites) == set(VECTORS)
    for name, shape in VECTORS.items():
        assert isinstance(sites[name]["fn"], ImplicitDistribution)
        assert sites[name]["infer"]["is_auxiliary"]
        value, back = found[name]
        assert value.shape == back.shape == shape
        np.testing.assert_allclose(back, value, rtol=1e-3, atol=1e-5)
    for name, shape in SHAPES.items():
        assert sites[name]["value"].shape == shape
        plates, wanted = (
            {frame.name for frame in s[name]["cond_indep_stack"]} for s in (sites, model_sites)
        )
        assert plates == wanted
    covered = {site: sites[site]["infer"]["_covers"] for site in VECTORS}
    assert covered == {
        "_auto_latent": ["mu", "tau"],
        "_auto_outer": ["a"],
        "_auto_inner": ["z", "w"],
        "_auto_outer_inner": ["c"],
    }


def test_changes_of_variables_are_the_usual_bijections():
    def model():
        for name, (prior, _) in PRIORS.items():
            numpyro.sample(name, prior())

    guide = AutoImplicit(model, init_samples=4, hidden=())

    @jax.jit
    def look(params):
        """What the guide says, and what the bijections do, of every site."""
        sites, start, found = traced(guide, params=params), 0, {}
        vector = sites["_auto_latent"]["value"]
        for name, (prior, size) in PRIORS.items():
            fn, value = sites[name]["fn"], sites[name]["value"]
            transform = biject_to(prior().support)
            u = vector[start : start + size].reshape(transform.inv(value).shape)
            start += size
            usual = transform(u), -transform.log_abs_det_jacobian(u, value).sum()
            inside = jnp.all(prior().support(value))
            found[name] = (value, fn.log_prob(value).sum()), usual, inside
        return vector, found

    vector, found = look(disturbed(init(guide)))
    for name, (ours, usual, inside) in found.items():
        for one, other in zip(ours, usual, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, err_msg=name)
        assert inside, name
    assert vector.shape == (sum(size for _, size in PRIORS.values()),)


def test_density_of_an_affine_guide_is_that_of_its_pushforward():
    def model():
        numpyro.sample("tau", dist.HalfCauchy(5.0))

    guide = AutoImplicit(model, init_samples=50)
    params = init(guide)
    sites = traced(guide, params=params)
    loc, scale = params["auto_latent_loc"], params["auto_latent_scale"]
    u, tau = sites["_auto_latent"]["value"], sites["tau"]["value"]
    got = dist.Normal(loc, scale).log_prob(u).sum() + sites["tau"]["fn"].log_density
    np.testing.assert_allclose(got, dist.LogNormal(loc, scale).log_prob(tau)[0], rtol=1e-5)
    masked = traced(handlers.mask(guide, mask=False), params=params)
    assert masked["tau"]["fn"].base_dist.log_density == 0
    assert sites["tau"]["fn"].log_density != 0


def test_batch_dimensions_without_a_plate_belong_to_the_vector():
    def model():
        with numpyro.plate("data", 6, dim=-1):
            numpyro.sample("b", dist.Normal(jnp.zeros((2, 1)), 1.0))

    sites = traced(AutoImplicit(model, init_samples=2))
    vector, value = sites["_auto_data"]["value"], sites["b"]["value"]
    assert vector.shape == (6, 2)
    np.testing.assert_array_equal(value, vector.T)
    back = sites["_auto_data"]["infer"]["_unconstrain"]({"b": value})
    np.testing.assert_array_equal(back, vector)


def test_prefix_keeps_two_guides_apart():
    guide = AutoGuideList(two_sites)
    guide.append(AutoImplicit(handlers.block(two_sites, hide=["mu"]), init_samples=4))
    rest = handlers.block(two_sites, expose=["mu"])
    guide.append(AutoImplicit(rest, init_samples=4, prefix="top"))
    latent = jax.eval_shape(lambda: traced(guide)["_top_latent"]["value"])
    assert latent.shape == (2,)
    params = init(guide)
    assert {name.split("_")[0] for name in params} == {"auto", "top"}
    assert shapes(guide.median(params)) == {"mu": (2,), "z": (6,)}


# --- where it starts -----------------------------------------------------------------------------


def test_starts_as_a_gaussian_with_location_and_scale_of_the_prior():
    def model():
        numpyro.sample("z", dist.Normal(jnp.array([3.0, -1.0]), 2.0).to_event(1))
        numpyro.sample("tau", dist.HalfCauchy(5.0))

    guide = AutoImplicit(model, init_samples=2000)
    params = init(guide)
    quantiles = np.log(stats.halfcauchy(scale=5.0).ppf(stats.norm.cdf([-1, 1])))
    loc, scale = [3.0, -1.0, math.log(5.0)], [2.0, 2.0, (quantiles[1] - quantiles[0]) / 2]
    # Standard errors of these quantiles are 1.25 and 1.2 scales / sqrt(n) or less.
    error = 5 * 2 * 1.25 / math.sqrt(2000)
    np.testing.assert_allclose(params["auto_latent_loc"], loc, atol=error)
    np.testing.assert_allclose(params["auto_latent_scale"], scale, atol=error)
    fn = traced(guide, params=params)["_auto_latent"]["fn"].fn
    noise = jax.random.normal(jax.random.key(0), (7, 3 + 8))
    expected = params["auto_latent_loc"] + params["auto_latent_scale"] * noise[:, :3]
    np.testing.assert_allclose(fn(noise), expected, rtol=1e-6)


def test_each_datum_starts_at_its_own_prior():
    def model(x, size=None):
        with numpyro.plate("data", len(x), subsample_size=size) as index:
            numpyro.sample("z", dist.Normal(100 * jnp.asarray(x)[index], 1.0))

    params = init(AutoImplicit(model), X)
    np.testing.assert_allclose(params["auto_data_loc"][:, 0], 100 * X, atol=0.6)
    pooled = init(AutoImplicit(model, init_samples=500), X, size=2)
    loc, scale = pooled["auto_data_loc"], pooled["auto_data_scale"]
    assert loc.shape == (6, 1)
    assert (loc == loc[0]).all()
    assert abs(loc[0]) < 30
    assert scale[0] > 30


def test_priors_without_draws_or_width_start_at_something_finite():
    def model():
        numpyro.sample("flat", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
        numpyro.sample("fixed", dist.Normal(1.0, 0.0, validate_args=False))
        numpyro.sample("ends", dist.Beta(1e-3, 1e-3))

    params = init(AutoImplicit(model, init_samples=20))
    loc, scale = params["auto_latent_loc"], params["auto_latent_scale"]
    assert jnp.isfinite(loc).all()
    assert jnp.isfinite(scale).all()
    assert (scale > 1e-3).all()
    assert loc[2] == scale[2] == 1


def test_likelihoods_without_a_density_do_not_hinder_it():
    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Delta(z), obs=x)

    assert traced(AutoImplicit(model, init_samples=2), X)["z"]["value"].shape == (6,)


def test_same_key_same_start():
    first, second = (init(AutoImplicit(local_model, init_samples=5), X, seed=3) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_set_up_inside_a_transformation_leaves_no_tracers():
    def model():
        numpyro.sample("z", dist.Uniform(jnp.zeros(2), 3.0).to_event(1))

    guide = AutoImplicit(model, init_samples=2)
    jax.eval_shape(lambda: handlers.seed(guide, 0)())
    params = init(guide)
    assert shapes(guide.sample_posterior(jax.random.key(0), params)) == {"z": (2,)}
    compiled = jax.jit(lambda key: guide.sample_posterior(key, params)["z"])
    assert compiled(jax.random.key(0)).shape == (2,)


# --- errors --------------------------------------------------------------------------------------


def test_discrete_latents_are_refused():
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
        numpyro.sample("b", dist.Bernoulli(0.5))

    guide = AutoImplicit(model)
    for _ in range(2):  # the second call is no different from the first
        with pytest.raises(ValueError, match=r"\['k', 'b'\] are discrete.*handlers.block.*hide="):
            traced(guide)
    hidden = AutoImplicit(handlers.block(model, hide=["k", "b"]), init_samples=2)
    assert traced(hidden)["z"]["value"].shape == ()


def test_models_without_latents_are_refused():
    with pytest.raises(ValueError, match=r"no latent site.*empty guide"):
        traced(AutoImplicit(lambda: None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_dim": -1}, "noise_dim must be an integer of at least 0, got -1"),
        ({"noise_dim": 2.0}, "noise_dim must be an integer"),
        ({"hidden": (64, 0)}, "hidden must be a sequence of layer sizes"),
        ({"hidden": 64}, "hidden must be a sequence of layer sizes, got 64"),
        ({"init_samples": 1}, "init_samples must be an integer of at least 2"),
        ({"init_samples": True}, "init_samples must be an integer"),
    ],
)
def test_sizes_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        AutoImplicit(local_model, **options)


def test_what_an_implicit_guide_cannot_do():
    guide = AutoImplicit(local_model, init_samples=2)
    with pytest.raises(RuntimeError, match="Call guide"):
        _ = guide.implicit_sites
    with pytest.raises(NotImplementedError, match=r"no density.*sample_posterior"):
        guide.get_posterior({})
    site = traced(guide, X)["_auto_data"]
    with pytest.raises(NotImplementedError, match="PriorContrastELBO"):
        site["fn"].log_prob(site["value"])
    with pytest.raises(KeyError, match=r"'auto_data'.*svi.get_params"):
        guide.sample_posterior(jax.random.key(0), {}, X)
