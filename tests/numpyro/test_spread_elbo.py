# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The spread handler and SpreadELBO in NumPyro: what they compute, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from numpyro_linear import ADAM, NOISE, D, K, S, data, evaluate, model, no_guide, point

from numpyro_spread import SpreadELBO, spread


def guide(x):
    V = numpyro.param("V", jnp.full((D, K), 0.2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Normal(x @ V, 0.4).to_event(1))


PARAMS = {"A": jnp.full((K, D), 0.5), "V": jnp.full((D, K), 0.2)}


def draws(loss, guide_call, **options):
    """What the guide receives, per particle, as the loss runs."""
    seen = []

    def watching(x):
        jax.debug.callback(lambda y: seen.append(np.array(y)), x)
        guide_call(x)

    evaluate(loss, model=options.pop("model", point), guide=watching, **options)
    jax.effects_barrier()
    return seen


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
