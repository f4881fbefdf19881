# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation without a critic, where log p(x) and the posterior are known."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from numpyro_known_posteriors import (
    FACTOR,
    KEY,
    PARAMS,
    SCALE,
    X,
    conjugate_guide,
    conjugate_model,
    global_model,
    implicit_guide,
    linear_model,
)
from scipy import stats

from numpyro_spread import (
    DeterministicGenerator,
    GaussianNoise,
    ais_log_likelihood,
    importance_weighted_bound,
    simulation_based_calibration,
    spread,
)
from spread_analysis import reference as ref

QUICK = {"num_temperatures": 60, "num_leapfrog": 4}


def exact_linear(x):
    covariance = FACTOR @ FACTOR.T + SCALE**2 * np.eye(6)
    return stats.multivariate_normal(np.zeros(6), covariance).logpdf(np.asarray(x))


def deterministic_model(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        mean = z @ FACTOR.T
        numpyro.sample("x", dist.Delta(mean, event_dim=1), obs=x)


def exact_global(x):
    covariance = 4.0 + 2.0 * np.eye(len(x))
    return stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(np.asarray(x))


def test_annealing_finds_the_evidence_of_a_linear_decoder():
    evidence = ais_log_likelihood(KEY, PARAMS, linear_model, X, **QUICK, num_chains=64)
    exact = exact_linear(X)
    assert evidence.values.shape == evidence.standard_error.shape == (5,)
    assert (np.abs(evidence.values - exact) < 4 * evidence.standard_error).all()
    assert abs(evidence.values.mean() - exact.mean()) < 0.1
    assert (evidence.standard_error < 0.2).all()
    assert abs(evidence.acceptance.mean() - 0.65) < 0.2


def test_chain_by_chain_is_the_same():
    results = []
    for vectorize in (True, False):
        run = ais_log_likelihood(
            KEY,
            PARAMS,
            linear_model,
            X,
            num_temperatures=10,
            num_chains=4,
            vectorize_chains=vectorize,
        )
        results.append(run.values)
    np.testing.assert_allclose(*results, rtol=1e-3)
    other = ais_log_likelihood(
        random.key(4), PARAMS, linear_model, X, num_temperatures=10, num_chains=4
    )
    assert (np.abs(other.values - results[0]) > 1e-3).all()  # the seed rules


def test_constrained_latents_whose_support_depends_on_others():
    # z ~ Exponential(1), x | z ~ Poisson(z): p(x) = 2^-(x + 1)
    counts = jnp.array([0.0, 1.0, 4.0])

    def counting(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Exponential(1.0))
            numpyro.sample("x", dist.Poisson(z), obs=x)

    # z ~ U(0, 2), w | z ~ U(0, z), x | w ~ Bernoulli(w / 2): p(x = 1) = E w / 2 = 1/4
    def nested(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Uniform(0.0, 2.0))
            w = numpyro.sample("w", dist.Uniform(0.0, z))
            numpyro.sample("x", dist.Bernoulli(w / 2), obs=x)

    # p ~ Dirichlet(1, 1, 1): every class has probability 1/3
    def simplex(x):
        with numpyro.plate("data", len(x)):
            p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
            numpyro.sample("x", dist.Categorical(p), obs=x)

    run = ais_log_likelihood(KEY, {}, counting, counts, **QUICK, num_chains=64)
    np.testing.assert_allclose(run.values, -np.log(2) * (counts + 1), atol=0.1)
    run = ais_log_likelihood(KEY, {}, nested, jnp.array([1.0, 0.0]), **QUICK, num_chains=64)
    np.testing.assert_allclose(run.values, np.log([0.25, 0.75]), atol=0.1)
    run = ais_log_likelihood(KEY, {}, simplex, jnp.array([0, 2]), **QUICK, num_chains=64)
    np.testing.assert_allclose(run.values, np.log([1 / 3, 1 / 3]), atol=0.1)


def test_data_are_the_elements_of_the_plates_that_all_sites_share():
    x = jnp.array([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])

    def repeated(x):  # two measurements of each of three data
        with numpyro.plate("data", 3, dim=-1):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with numpyro.plate("repeats", 2, dim=-2):
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def grid(x):
        with numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 3, dim=-1):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    run = ais_log_likelihood(KEY, {}, repeated, x, **QUICK, num_chains=64)
    exact = stats.multivariate_normal(np.zeros(2), 1 + np.eye(2)).logpdf(np.asarray(x.T))
    np.testing.assert_allclose(run.values, exact, atol=0.1)
    run = ais_log_likelihood(KEY, {}, grid, x, **QUICK, num_chains=64)
    np.testing.assert_allclose(run.values, stats.norm.logpdf(x, 0, 3**0.5), atol=0.1)
    run = ais_log_likelihood(KEY, {}, global_model, x[0], **QUICK, num_chains=64)
    assert run.values.shape == ()
    np.testing.assert_allclose(run.values, exact_global(x[0]), atol=0.2)


def test_masked_data_cost_nothing():
    def masked(x):
        with numpyro.plate("data", len(x)), handlers.mask(mask=jnp.array([True, False])):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    run = ais_log_likelihood(KEY, {}, masked, jnp.array([1.0, 9.0]), **QUICK)
    assert run.values[1] == 0.0
    assert run.values[0] == pytest.approx(float(ref.conjugate_evidence(1.0, 1.0)), abs=0.1)


def test_a_deterministic_decoder_is_evaluated_after_the_noise():
    spread_model = spread(deterministic_model, noise={"x": GaussianNoise(SCALE)})
    run = ais_log_likelihood(KEY, {}, spread_model, X, **QUICK, num_chains=64)
    assert abs(run.values.mean() - exact_linear(X).mean()) < 0.1
    with pytest.raises(ValueError, match=r"every prior draw for 5 of 5 data.*spread\(model"):
        ais_log_likelihood(KEY, {}, deterministic_model, X)

    def generator(x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", DeterministicGenerator(z), obs=x)

    with pytest.raises(NotImplementedError, match="SpreadELBO"):
        ais_log_likelihood(KEY, {}, generator, jnp.array(1.0))


def test_the_exact_posterior_gives_the_exact_bound():
    x = jnp.array([0.0, 2.0, -1.0])
    exact = ref.conjugate_evidence(1.0, np.asarray(x))
    bound = importance_weighted_bound(
        KEY, {}, conjugate_model, conjugate_guide(), x, num_samples=20
    )
    np.testing.assert_allclose(bound.values, exact, atol=1e-5)
    np.testing.assert_allclose(bound.effective_sample_size, 20, rtol=1e-4)


def test_the_bound_tightens_with_samples():
    x = jnp.linspace(-2, 2, 300)
    exact = ref.conjugate_evidence(1.0, np.asarray(x))
    gaps = []
    for num_samples in (1, 10, 300):
        guide = conjugate_guide(shift=0.2, width=1.4)
        bound = importance_weighted_bound(
            KEY, {}, conjugate_model, guide, x, num_samples=num_samples
        )
        gaps.append((exact - bound.values).mean())
    # one sample: KL[q || p] of the two Gaussians
    kl = 0.5 * (1.4**2 - 1 - np.log(1.4**2)) + 0.2**2
    assert gaps[0] == pytest.approx(kl, abs=0.2)
    assert gaps[0] > 2 * gaps[1] > 10 * gaps[2] > -0.05
    assert abs(gaps[2]) < 0.01


def test_autoguides_and_latents_left_to_the_prior():
    x = jnp.array([0.5, -1.0])
    for guide_type in (AutoNormal, AutoDiagonalNormal):
        guide = guide_type(global_model, init_scale=1.0)
        svi = SVI(global_model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
        params = svi.get_params(svi.init(KEY, x))
        bound = importance_weighted_bound(KEY, params, global_model, guide, x, num_samples=500)
        assert bound.values.shape == ()
        assert float(bound.values) == pytest.approx(exact_global(x), abs=0.2)

    def only_global(x):
        numpyro.sample("mu", dist.Normal(0.0, 2.0))

    bound = importance_weighted_bound(KEY, {}, global_model, only_global, x, num_samples=1000)
    assert float(bound.values) == pytest.approx(exact_global(x), abs=0.2)


def test_guides_without_density_are_refused():
    x = jnp.array([0.5, -1.0])
    message = r"guide site 'z' has no density.*ais_log_likelihood"
    with pytest.raises(ValueError, match=message):
        importance_weighted_bound(KEY, {}, conjugate_model, implicit_guide(), x)
    point = AutoDelta(conjugate_model)
    svi = SVI(conjugate_model, point, numpyro.optim.Adam(1e-3), Trace_ELBO())
    params = svi.get_params(svi.init(KEY, x))
    with pytest.raises(ValueError, match=message):
        importance_weighted_bound(KEY, params, conjugate_model, point, x)


def test_an_implicit_guide_works_in_stock_predictive():
    x = jnp.linspace(-1, 1, 50)
    draws = Predictive(implicit_guide(), num_samples=400)(KEY, x)["z"]
    assert draws.shape == (400, 50)
    np.testing.assert_allclose(draws.mean(0), x / 2, atol=0.2)
    np.testing.assert_allclose(draws.std(0), 0.5**0.5, rtol=0.2)
    generated = Predictive(
        handlers.uncondition(conjugate_model), guide=implicit_guide(), params={}, num_samples=400
    )(KEY, x)["x"]
    assert generated.shape == (400, 50)
    np.testing.assert_allclose(generated.std(0), 1.5**0.5, rtol=0.2)


def subsampled(x):
    with numpyro.plate("data", len(x), subsample_size=2) as index:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def discrete(x):
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def factored(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("f", -(z**2))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def tempered(x):
    with handlers.scale(scale=0.5):
        conjugate_model(x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: ais_log_likelihood(KEY, {}, subsampled, x),
            ValueError,
            "site 'z' is scaled, by a subsampling plate or a scale handler",
        ),
        (
            lambda x: importance_weighted_bound(KEY, {}, tempered, conjugate_guide(), x),
            ValueError,
            "site 'z' is scaled",
        ),
        (
            lambda x: ais_log_likelihood(KEY, {}, handlers.uncondition(conjugate_model), x),
            ValueError,
            "the model observes nothing",
        ),
        (
            lambda x: ais_log_likelihood(
                KEY, {}, handlers.condition(conjugate_model, data={"z": jnp.zeros(4)}), x
            ),
            ValueError,
            r"no latent site, only \['x', 'z'\]: its log-likelihood is exact",
        ),
        (
            lambda x: ais_log_likelihood(KEY, {}, discrete, x[0]),
            NotImplementedError,
            "site 'z' is a discrete latent.*importance_weighted_bound",
        ),
        (
            lambda x: ais_log_likelihood(KEY, {}, conjugate_model, x, num_chains=0),
            ValueError,
            "`num_chains` must be an integer of at least 1",
        ),
        (
            lambda x: importance_weighted_bound(
                KEY, {}, conjugate_model, conjugate_guide(), x, num_samples=0
            ),
            ValueError,
            "`num_samples` must be an integer of at least 1",
        ),
        (
            lambda x: simulation_based_calibration(
                KEY, {}, conjugate_model, conjugate_guide(), x, sites=["w"]
            ),
            ValueError,
            r"sites=\['w'\]: .* both model and guide draw; those are \['z'\]",
        ),
        (
            lambda x: simulation_based_calibration(KEY, {}, factored, discrete, x[0]),
            ValueError,
            "site 'f'",
        ),
        (
            lambda x: simulation_based_calibration(KEY, {}, subsampled, conjugate_guide(), x),
            ValueError,
            r"simulates data of shape \(2,\), but its argument 'x' has the shape \(4,\)",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(jnp.array([0.0, 1.0, 2.0, 3.0]))


def test_deterministic_sites_are_none_of_the_evidence():
    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.deterministic("twice", 2 * z)
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = jnp.asarray([0.0, 2.0])
    evidence = ais_log_likelihood(KEY, {}, model, x, **QUICK)
    np.testing.assert_allclose(evidence.values, stats.norm(0, 2**0.5).logpdf(x), atol=0.2)
