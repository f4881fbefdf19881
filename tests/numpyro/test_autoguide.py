# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AutoImplicit: shapes, where it starts, densities of the change of variables, errors."""

import functools
import math

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import SVI, Predictive
from numpyro.infer.autoguide import AutoGuideList
from scipy import stats

from numpyro_spread import AutoImplicit, ImplicitDistribution, PriorContrastELBO, concat_sites

X = np.linspace(-1.0, 1.0, 6, dtype=np.float32)

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


def many_sites(x=X):
    """Global, local and nested latents, scalar and vector, real and constrained."""
    numpyro.sample("mu", dist.Normal(jnp.zeros(3), 1.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    outer = numpyro.plate("outer", 2, dim=-2)
    inner = numpyro.plate("inner", 6, dim=-1)
    with outer:
        numpyro.sample("a", dist.HalfNormal(jnp.ones(3)).to_event(1))
    with inner:
        z = numpyro.sample("z", dist.Normal(0.0, tau))
        numpyro.sample("w", dist.LogNormal(jnp.zeros(2), 1.0).to_event(1))
    with outer, inner:
        numpyro.sample("c", dist.Normal(z, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def two_sites(x=X):
    mu = numpyro.sample("mu", dist.HalfNormal(jnp.ones(2)).to_event(1))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu.sum(), 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


SHAPES = {"mu": (3,), "tau": (), "a": (2, 1, 3), "z": (6,), "w": (6, 2), "c": (2, 6)}
VECTORS = {
    "_auto_latent": (4,),
    "_auto_outer": (2, 1, 3),
    "_auto_inner": (6, 3),
    "_auto_outer_inner": (2, 6, 1),
}


def local_model(x=X, size=None):
    with numpyro.plate("data", len(x), subsample_size=size) as index:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def shapes(values):
    return {name: tuple(value.shape) for name, value in values.items()}


def traced(guide, *args, params=None, seed=0, **kwargs):
    substituted = handlers.substitute(handlers.seed(guide, seed), data=params or {})
    return handlers.trace(substituted).get_trace(*args, **kwargs)


def init(guide, *args, seed=0, **kwargs):
    """The params, from one program: op by op, every small operation would be one of its own."""

    args = [jnp.asarray(arg) if isinstance(arg, np.ndarray) else arg for arg in args]

    @jax.jit
    def start(key):
        sites = traced(guide, *args, seed=key, **kwargs)
        return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}

    return start(jax.random.key(seed))


@functools.cache
def many():
    """A guide for many sites, and its params."""
    guide = AutoImplicit(many_sites, hidden=(4,), init_samples=4)
    return guide, init(guide)


def disturbed(params, seed=1):
    """Params away from where the net is zero."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        leaf * jnp.exp(0.1) + 0.3 * jnp.abs(jax.random.normal(key, leaf.shape))
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


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


# --- amortised -----------------------------------------------------------------------------------


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
