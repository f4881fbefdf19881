# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The spread handler and SpreadELBO in NumPyro: what they compute, what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro import handlers
from numpyro.distributions import constraints, transforms
from numpyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density
from numpyro.primitives import mutable

from numpyro_spread import (
    ChannelNoise,
    DeterministicGenerator,
    GaussianNoise,
    ImplicitDistribution,
    LaplaceNoise,
    LowRankGaussianNoise,
    SpreadELBO,
    TransformedNoise,
    spread,
)

S = 0.5
NOISE = {"x": GaussianNoise(S)}
ADAM = optax.adam(1e-2)
N, D, K = 6, 3, 2


def data(n=N):
    return random.normal(random.key(0), (n, D)) + 1.0


def model(x):
    A = numpyro.param("A", jnp.full((K, D), 0.5))
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(K), 1.0).to_event(1))
        numpyro.sample("x", dist.Delta(z @ A, event_dim=1), obs=x)


def guide(x):
    V = numpyro.param("V", jnp.full((D, K), 0.2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Normal(x @ V, 0.4).to_event(1))


PARAMS = {"A": jnp.full((K, D), 0.5), "V": jnp.full((D, K), 0.2)}


def point(x):
    """No latent variable: the bound is the exact log-density, and shows what was scored."""
    g = numpyro.param("g", 0.0)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("x", dist.Delta(jnp.full(x.shape, g), event_dim=1), obs=x)


def no_guide(x):
    pass


def evaluate(loss, model=point, guide=no_guide, params=None, *args, seed=1, **kwargs):
    args = args if args or kwargs else (data(),)
    params = {"g": jnp.array(0.0)} if params is None else params
    return loss.loss(random.key(seed), params, model, guide, *args, **kwargs)


def draws(loss, guide_call, **options):
    """What the guide receives, per particle, as the loss runs."""
    seen = []

    def watching(x):
        jax.debug.callback(lambda y: seen.append(np.array(y)), x)
        guide_call(x)

    evaluate(loss, model=options.pop("model", point), guide=watching, **options)
    jax.effects_barrier()
    return seen


# --- what is computed ----------------------------------------------------------------------------


def test_loss_is_the_stock_loss_of_the_spread_model_at_y():
    seen = []

    def watching(y):
        seen.append(y)
        guide(y)

    loss = SpreadELBO(NOISE).loss(random.key(1), PARAMS, model, watching, data())
    (y,) = seen
    assert not np.isclose(y, data()).any()
    _, elbo_key = random.split(random.key(1))
    stock = Trace_ELBO().loss(elbo_key, PARAMS, spread(model, NOISE), guide, y)
    np.testing.assert_allclose(loss, stock, rtol=1e-6)
    np.testing.assert_allclose(y, data(), atol=4 * S)


def test_exact_posterior_gives_the_evidence_of_y():
    A = np.array([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4]])
    precision = np.eye(K) + A @ A.T / S**2
    covariance = np.linalg.inv(precision)

    def posterior(y):
        with numpyro.plate("data", y.shape[0]):
            mean = y @ A.T @ covariance / S**2
            numpyro.sample("z", dist.MultivariateNormal(mean, covariance))

    def negative_evidence(x):
        seen.append(x)
        posterior(x)

    seen = []
    loss = SpreadELBO(NOISE).loss(
        random.key(1), {"A": jnp.asarray(A)}, model, negative_evidence, data()
    )
    marginal = dist.MultivariateNormal(np.zeros(D), A.T @ A + S**2 * np.eye(D))
    np.testing.assert_allclose(loss, -marginal.log_prob(seen[0]).sum(), rtol=1e-4)


def test_noise_has_its_distribution_and_the_likelihood_is_scored_at_y():
    # With x = 0 and g = 0 the loss is D/2 log(2 pi s²) + |y|²/(2 s²), of mean D/2 more.
    x = jnp.zeros((2000, D))
    losses = evaluate(SpreadELBO(NOISE), point, no_guide, None, x)
    constant = 0.5 * D * np.log(2 * np.pi * S**2)
    standard_error = np.sqrt(D / 2 / 2000)
    assert abs(losses / 2000 - constant - D / 2) < 4 * standard_error


def test_noise_is_fresh_every_step_and_every_particle():
    loss = SpreadELBO(NOISE, Trace_ELBO(num_particles=4))
    first, second = draws(loss, no_guide, seed=1), draws(loss, no_guide, seed=2)
    assert len(first) == 4
    flat = np.concatenate([y.ravel() for y in first + second])
    assert len(np.unique(flat)) == flat.size
    again = draws(loss, no_guide, seed=1)
    order = np.argsort([y[0, 0] for y in first]), np.argsort([y[0, 0] for y in again])
    np.testing.assert_array_equal(np.array(first)[order[0]], np.array(again)[order[1]])


@pytest.mark.parametrize("vectorize", [True, False], ids=["vmap", "map"])
def test_particles_are_averaged(vectorize):
    loss = SpreadELBO(NOISE, Trace_ELBO(num_particles=3, vectorize_particles=vectorize))
    keys = random.split(random.key(1), 3)
    single = jax.jit(lambda key: SpreadELBO(NOISE).loss(key, PARAMS, model, guide, data()))
    expected = np.mean([single(key) for key in keys])
    value = jax.jit(lambda: loss.loss(random.key(1), PARAMS, model, guide, data()))()
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_importance_weighted_bounds_share_one_y():
    seen = draws(SpreadELBO(NOISE, RenyiELBO(alpha=0, num_particles=5)), no_guide)
    assert {y.tobytes() for y in seen} == {seen[0].tobytes()}


def test_data_and_key_are_left_alone():
    x = np.array(data())
    before = x.copy()
    evaluate(SpreadELBO(NOISE), point, no_guide, None, x)
    np.testing.assert_array_equal(x, before)


ELBOS = {
    "trace": lambda: Trace_ELBO(),
    "trace_particles": lambda: Trace_ELBO(num_particles=3),
    "trace_map": lambda: Trace_ELBO(num_particles=3, vectorize_particles=False),
    "mean_field": lambda: TraceMeanField_ELBO(),
    "mean_field_particles": lambda: TraceMeanField_ELBO(num_particles=3),
    "renyi": lambda: RenyiELBO(alpha=0.5, num_particles=3),
    "graph": lambda: TraceGraph_ELBO(),
    "graph_particles": lambda: TraceGraph_ELBO(num_particles=3),
    "enum": lambda: TraceEnum_ELBO(),
    "enum_particles": lambda: TraceEnum_ELBO(num_particles=2),
}


# Several particles, or a map over them, are run by the same code as those of the others.
AGAIN = ("trace_map", "mean_field_particles", "graph_particles")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in AGAIN else n for n in ELBOS]
)
def test_every_stock_elbo_runs_in_svi(name):
    if name.startswith("enum"):
        pytest.importorskip("funsor")
    loss = SpreadELBO(NOISE, ELBOS[name]())
    svi = SVI(model, loss.register(model, guide), ADAM, loss)
    result = svi.run(random.key(0), 3, data(), progress_bar=False)
    assert np.isfinite(result.losses).all()
    assert not np.allclose(result.params["A"], 0.5)
    if name == "trace":
        assert np.isfinite(svi.evaluate(result.state, data()))
        stock = SVI(model, guide, ADAM, ELBOS[name]()).run(
            random.key(0), 1, data(), progress_bar=False
        )
        assert not np.isfinite(stock.losses).any()


def test_sum_sites_false_and_multi_sample_guide():
    loss = SpreadELBO(NOISE, Trace_ELBO(num_particles=2, sum_sites=False))
    by_site = loss.loss(random.key(0), PARAMS, model, guide, data())
    assert set(by_site) == {"x", "z"}
    assert all(np.isfinite(value) for value in by_site.values())

    def several(x):
        V = numpyro.param("V", jnp.full((D, K), 0.2))
        z = dist.Normal(x @ V, 0.4).expand((4, x.shape[0], K)).to_event(3)
        numpyro.sample("z", z)

    loss = SpreadELBO(NOISE, Trace_ELBO(multi_sample_guide=True))
    svi = SVI(model, loss.register(model, several), ADAM, loss)
    result = svi.run(random.key(0), 2, data(), progress_bar=False)
    assert np.isfinite(result.losses).all()


def test_discrete_latents_are_enumerated():
    pytest.importorskip("funsor")
    from numpyro.contrib.funsor import config_enumerate

    @config_enumerate
    def clusters(x):
        locs = numpyro.param("locs", jnp.array([[-1.0] * D, [1.0] * D]))
        with numpyro.plate("data", x.shape[0]):
            c = numpyro.sample("c", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("x", dist.Delta(locs[c], event_dim=1), obs=x)

    locs = jnp.array([[-1.0] * D, [1.0] * D])
    seen = []
    loss = SpreadELBO(NOISE, TraceEnum_ELBO(max_plate_nesting=1))
    value = loss.loss(random.key(0), {"locs": locs}, clusters, seen.append, data())
    parts = dist.Normal(locs, S).to_event(1)
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.4, 0.6])), parts)
    np.testing.assert_allclose(value, -mixture.log_prob(seen[0]).sum(), rtol=1e-5)
    assert loss.can_infer_discrete
    assert not SpreadELBO(NOISE).can_infer_discrete


@pytest.mark.parametrize("how", ["run", "bar", "stable", "jit", "eager", "scan", "unregistered"])
def test_unmodified_svi_in_all_its_ways(how):
    loss, x = SpreadELBO(NOISE), data()
    svi = SVI(model, guide if how == "unregistered" else loss.register(model, guide), ADAM, loss)
    if how in ("run", "bar", "stable", "unregistered"):
        losses = svi.run(
            random.key(0), 3, x, progress_bar=how == "bar", stable_update=how == "stable"
        ).losses
    else:
        state = svi.init(random.key(0), x)
        if how == "scan":
            _, losses = jax.lax.scan(
                lambda s, batch: svi.update(s, batch), state, jnp.stack([x] * 3)
            )
        else:
            update = jax.jit(svi.update) if how == "jit" else svi.update
            state, first = update(state, x)
            _, second = update(state, x)
            losses = jnp.stack([first, second])
    assert np.isfinite(losses).all()
    assert len(np.unique(losses)) == len(losses)


# --- data, plates, sites -------------------------------------------------------------------------


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


# --- errors --------------------------------------------------------------------------------------


def observing(fn):
    def model(x):
        value, distribution = fn(x)
        numpyro.sample("x", distribution, obs=value)

    return model


def zeros(x, event_dim=2):
    return dist.Delta(jnp.zeros(jnp.shape(x)), event_dim=event_dim)


def two_sites(x):
    numpyro.sample("x", zeros(x), obs=x)
    numpyro.sample("w", zeros(x).expand((2,)).mask(jnp.ones(2, bool)), obs=x)


CLEAN = np.asarray(data())
BAD_MODELS = {
    "unspread_delta": (two_sites, NOISE, ValueError, "site 'w' is an observed Delta"),
    "unspread_generator": (
        observing(lambda x: (x, DeterministicGenerator(x, 2))),
        {"y": GaussianNoise(S)}, ValueError, "site 'x' is an observed Delta"
    ),
    "no_such_site": (
        observing(lambda x: (x, zeros(x))), NOISE | {"w": GaussianNoise(S)}, ValueError,
        "no sample site of that name"
    ),
    "not_observed": (observing(lambda x: (None, zeros(x))), NOISE, ValueError, "does not observe"),
    "clean": (observing(lambda x: (CLEAN, zeros(x))), NOISE, ValueError, "something other"),
    "clean_jnp": (
        observing(lambda x: (jnp.asarray(CLEAN)[:3], zeros(x[:3]))), NOISE, ValueError,
        "something other"
    ),
    "scaled": (observing(lambda x: (x / 2, zeros(x))), NOISE, ValueError, "something other"),
    "rounded": (
        observing(lambda x: (x.round(), zeros(x))), NOISE, ValueError, "something other"
    ),
    "mixed": (
        observing(lambda x: (jnp.concatenate([x[:3], CLEAN[3:]]), zeros(x))), NOISE, ValueError,
        "something other"
    ),
    "transposed": (
        observing(lambda x: (x.T, zeros(x.T))), {"x": GaussianNoise(jnp.full((1, 1), S))},
        ValueError, "something other"
    ),
    "already": (spread(observing(lambda x: (x, zeros(x))), NOISE), NOISE, ValueError, "already"),
    "event_shape": (
        observing(lambda x: (x, zeros(x, 1))), {"x": LowRankGaussianNoise(S, np.ones((N * D, 1)))},
        ValueError, "site 'x': .*does not fit the event shape"
    ),
    "no_event": (
        observing(lambda x: (x, zeros(x, 0))), {"x": LowRankGaussianNoise(S, np.ones((D, 1)))},
        ValueError, "site 'x': .*to_event"
    ),
    "scale": (
        observing(lambda x: (x, zeros(x))), {"x": GaussianNoise(jnp.ones(2))}, ValueError,
        "site 'x': .*does not fit"
    ),
    "no_rule": (
        observing(lambda x: (x, dist.Gamma(jnp.ones(x.shape), 1.0))), NOISE, NotImplementedError,
        "site 'x': GaussianNoise has no exact spread of Gamma"
    ),
    "integer_output": (
        observing(lambda x: (x, dist.Delta(jnp.zeros(x.shape, int)))), NOISE, TypeError,
        "site 'x': .*integer type"
    ),
    "implicit": (
        observing(
            lambda x: (x, ImplicitDistribution(jnp.tanh, dist.Normal(jnp.zeros(x.shape), 1.0), ()))
        ),
        NOISE, NotImplementedError, "no exact spread of ImplicitDistribution"
    ),
}  # fmt: skip


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_cannot_be_spread_are_refused(name, jit):
    bad, noise, error, text = BAD_MODELS[name]
    loss = SpreadELBO(noise, data={} if len(noise) == 1 else {"x": "x", "w": "w"})
    kwargs = {"w": data()} if "w" in noise else {}
    guide = lambda *args, **kwargs: None  # noqa: E731
    if kwargs:
        inner = bad
        bad = lambda x, w: inner(x)  # noqa: E731

    def run(x):
        return loss.loss(random.key(0), {}, bad, guide, x, **kwargs)

    with pytest.raises(error, match=text):
        (jax.jit(run) if jit else run)(data())


def with_nan():
    return data().at[0, 0].set(jnp.nan)


BAD_DATA = {
    "nan": (with_nan, NOISE, ValueError, "'x' contains NaN or inf"),
    "inf": (lambda: data().at[0, 0].set(jnp.inf), NOISE, ValueError, "NaN or inf"),
    "none": (lambda: None, NOISE, ValueError, "argument 'x' is of type NoneType"),
    "list": (lambda: [1.0, 2.0], NOISE, ValueError, "argument 'x' is of type list"),
    "integer": (lambda: jnp.ones((N, D), int), NOISE, TypeError, "site 'x': .*integer type"),
    "float_label": (data, {"x": ChannelNoise.symmetric(3, 0.1)}, TypeError, "class labels"),
    "label": (
        lambda: jnp.array([0, 3]), {"x": ChannelNoise.symmetric(3, 0.1)}, ValueError, r"0\.\.2"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "when"),
    # A registered guide runs without data, as Predictive runs it: None is refused by the loss.
    [(n, w) for n in BAD_DATA for w in ("init", "loss", "run") if (n, w) != ("none", "init")],
)
def test_bad_data_are_refused(name, when):
    make, noise, error, text = BAD_DATA[name]
    loss = SpreadELBO(noise)

    def harmless(x):
        numpyro.param("g", 0.0)

    svi = SVI(harmless, loss.register(harmless, harmless), ADAM, loss)
    if when == "run":  # an unregistered guide: found when svi.run traces its first step
        svi = SVI(harmless, harmless, ADAM, loss)
    call = {
        "init": lambda x: svi.init(random.key(0), x),
        "run": lambda x: svi.run(random.key(0), 1, x, progress_bar=False),
        "loss": lambda x: loss.loss(random.key(0), {}, harmless, harmless, x),
    }[when]
    with pytest.raises(error, match=text):
        call(make())


def test_type_errors_show_under_jit_too():
    loss = SpreadELBO(NOISE)
    with pytest.raises(TypeError, match="integer type"):
        jax.jit(lambda x: evaluate(loss, point, no_guide, None, x))(jnp.ones((N, D), int))


def test_arguments_that_cannot_be_found():
    loss = SpreadELBO(NOISE, data={"x": "images"})
    with pytest.raises(ValueError, match="'images' carries it"):
        evaluate(loss)
    both = SpreadELBO(NOISE | {"w": GaussianNoise(S)})
    with pytest.raises(ValueError, match="would both take their data"):
        evaluate(both, two_sites, no_guide, {}, data())
    with pytest.raises(ValueError, match="without arguments"):
        SpreadELBO(NOISE).loss(random.key(0), {}, lambda: None, lambda: None)


def test_bad_losses_and_noise_are_refused():
    class Unknown(Trace_ELBO.__bases__[0]):
        pass

    from numpyro.contrib.einstein.stein_loss import SteinLoss

    for noise in ({}, None, [("x", GaussianNoise(S))], {1: GaussianNoise(S)}):
        with pytest.raises(TypeError, match="dict from the name"):
            SpreadELBO(noise)
        with pytest.raises(TypeError, match="dict from the name"):
            spread(point, noise)
    with pytest.raises(TypeError, match="site 'x': expected a noise kernel"):
        SpreadELBO({"x": 0.3})
    for elbo in (SteinLoss(), "trace", Trace_ELBO):
        with pytest.raises(TypeError, match="must be an instance of"):
            SpreadELBO(NOISE, elbo)
    for elbo in (Unknown(), SpreadELBO(NOISE)):
        with pytest.raises(NotImplementedError, match="cannot wrap"):
            SpreadELBO(NOISE, elbo)
    with pytest.raises(ValueError, match="noise has no kernel"):
        SpreadELBO(NOISE, data={"w": "x"})


def test_handler_errors():
    def inner(y=None):
        numpyro.sample("x", dist.Delta(jnp.zeros(3), event_dim=1), obs=y)

    late = handlers.condition(spread(inner, NOISE), {"x": jnp.ones(3)})
    with pytest.raises(ValueError, match="outside of spread"):
        log_density(late, (), {}, {})
    early = spread(handlers.condition(inner, {"x": jnp.ones(3)}), NOISE)
    assert np.isfinite(log_density(early, (), {}, {})[0])
    with pytest.raises(ValueError, match="spread already"):
        log_density(spread(spread(inner, NOISE), NOISE), (jnp.ones(3),), {}, {})
    with pytest.raises(TypeError, match=r"site 'x': .*integer type"):
        log_density(spread(inner, NOISE), (jnp.ones(3, int),), {}, {})
    with pytest.raises(ValueError, match="no sample site of that name"):
        handlers.seed(spread(inner, {"w": GaussianNoise(S)}), 0)(jnp.ones(3))
    # The stack is clean after an error.
    assert np.isfinite(log_density(spread(inner, NOISE), (jnp.ones(3),), {}, {})[0])


def test_mutable_state_works_with_one_particle_and_is_refused_with_more():
    def counting(x):
        count = mutable("count", {"steps": jnp.array(0)})
        count["steps"] = count["steps"] + 1
        point(x)

    loss = SpreadELBO(NOISE)
    svi = SVI(counting, loss.register(counting, no_guide), ADAM, loss)
    result = svi.run(random.key(0), 4, data(), progress_bar=False)
    assert result.state.mutable_state["count"]["steps"] == 5  # SVI.init runs the model once

    loss = SpreadELBO(NOISE, Trace_ELBO(num_particles=2))
    svi = SVI(counting, loss.register(counting, no_guide), ADAM, loss)
    with pytest.raises(NotImplementedError, match="num_particles=2"):
        svi.run(random.key(0), 1, data(), progress_bar=False)


def test_deterministic_sites_and_factors_are_not_observed_deltas():
    def decorated(x):
        numpyro.deterministic("mean", x.mean())
        numpyro.factor("weight", jnp.array(1.5))
        point(x)

    plain, loss = evaluate(SpreadELBO(NOISE)), evaluate(SpreadELBO(NOISE), decorated)
    np.testing.assert_allclose(loss, plain - 1.5, rtol=1e-6)


def test_no_check_is_left_in_the_compiled_step():
    """The decision about what was observed is made on the jaxpr, and leaves nothing in it."""

    def indexed(x):
        with numpyro.plate("data", N, subsample_size=N):
            numpyro.sample("x", dist.Delta(jnp.zeros((N, D)), event_dim=1), obs=x.reshape(N, D))

    def direct(x):
        with numpyro.plate("data", N, subsample_size=N):
            numpyro.sample("x", dist.Delta(jnp.zeros((N, D)), event_dim=1), obs=x)

    def count(model):
        def run(x):
            return SpreadELBO(NOISE).loss(random.key(0), {}, model, no_guide, x)

        return len(jax.make_jaxpr(run)(data()).jaxpr.eqns)

    assert count(indexed) <= count(direct) + 1


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
