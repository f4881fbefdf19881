# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Evaluation without a critic, where log p(x) and the posterior are known."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro_known_posteriors import (
    FACTOR,
    SCALE,
    X,
    conjugate_guide,
    conjugate_model,
    global_model,
    implicit_guide,
    linear_model,
)
from scipy import stats

from pyro_spread import (
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
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = z @ torch.tensor(FACTOR.T, dtype=torch.float32)
        pyro.sample("x", dist.Delta(mean, event_dim=1), obs=x)


def exact_global(x):
    covariance = 4.0 + 2.0 * np.eye(len(x))
    return stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(np.asarray(x))


def test_annealing_finds_the_evidence_of_a_linear_decoder():
    evidence = ais_log_likelihood(linear_model, X, **QUICK, num_chains=64)
    exact = exact_linear(X)
    assert evidence.values.shape == evidence.standard_error.shape == (5,)
    assert (np.abs(evidence.values - exact) < 4 * evidence.standard_error).all()
    assert abs(evidence.values.mean() - exact.mean()) < 0.1
    assert (evidence.standard_error < 0.2).all()
    assert abs(evidence.acceptance.mean() - 0.65) < 0.2
    weight = pyro.get_param_store()["decoder$$$weight"]
    assert weight.grad is None  # evaluation leaves no gradients behind


def test_chain_by_chain_is_the_same():
    results = []
    for vectorize in (True, False):
        pyro.set_rng_seed(3)
        run = ais_log_likelihood(
            linear_model, X, num_temperatures=10, num_chains=4, vectorize_chains=vectorize
        )
        results.append(run.values)
    np.testing.assert_allclose(*results, rtol=1e-3)
    pyro.set_rng_seed(4)
    other = ais_log_likelihood(linear_model, X, num_temperatures=10, num_chains=4)
    assert (np.abs(other.values - results[0]) > 1e-3).all()  # the seed rules


def test_constrained_latents_whose_support_depends_on_others():
    # z ~ Exponential(1), x | z ~ Poisson(z): p(x) = 2^-(x + 1)
    counts = torch.tensor([0.0, 1.0, 4.0])

    def counting(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(1.0))
            pyro.sample("x", dist.Poisson(z), obs=x)

    # z ~ U(0, 2), w | z ~ U(0, z), x | w ~ Bernoulli(w / 2): p(x = 1) = E w / 2 = 1/4
    def nested(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(0.0, 2.0))
            w = pyro.sample("w", dist.Uniform(0.0, z))
            pyro.sample("x", dist.Bernoulli(w / 2), obs=x)

    # p ~ Dirichlet(1, 1, 1): every class has probability 1/3
    def simplex(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
            pyro.sample("x", dist.Categorical(p), obs=x)

    run = ais_log_likelihood(counting, counts, **QUICK, num_chains=64)
    np.testing.assert_allclose(run.values, -np.log(2) * (counts + 1), atol=0.1)
    run = ais_log_likelihood(nested, torch.tensor([1.0, 0.0]), **QUICK, num_chains=64)
    np.testing.assert_allclose(run.values, np.log([0.25, 0.75]), atol=0.1)
    run = ais_log_likelihood(simplex, torch.tensor([0, 2]), **QUICK, num_chains=64)
    np.testing.assert_allclose(run.values, np.log([1 / 3, 1 / 3]), atol=0.1)


def test_data_are_the_elements_of_the_plates_that_all_sites_share():
    x = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])

    def repeated(x):  # two measurements of each of three data
        with pyro.plate("data", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("repeats", 2, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def grid(x):
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    run = ais_log_likelihood(repeated, x, **QUICK, num_chains=64)
    exact = stats.multivariate_normal(np.zeros(2), 1 + np.eye(2)).logpdf(x.T.numpy())
    np.testing.assert_allclose(run.values, exact, atol=0.1)
    run = ais_log_likelihood(grid, x, **QUICK, num_chains=64)
    np.testing.assert_allclose(run.values, stats.norm.logpdf(x, 0, 3**0.5), atol=0.1)
    run = ais_log_likelihood(global_model, x[0], **QUICK, num_chains=64)
    assert run.values.shape == ()
    np.testing.assert_allclose(run.values, exact_global(x[0]), atol=0.2)


def test_masked_data_cost_nothing():
    def masked(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=torch.tensor([True, False])):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    run = ais_log_likelihood(masked, torch.tensor([1.0, 9.0]), **QUICK)
    assert run.values[1] == 0.0
    assert run.values[0] == pytest.approx(float(ref.conjugate_evidence(1.0, 1.0)), abs=0.1)


def test_a_deterministic_decoder_is_evaluated_after_the_noise():
    spread_model = spread(deterministic_model, noise={"x": GaussianNoise(SCALE)})
    run = ais_log_likelihood(spread_model, X, **QUICK, num_chains=64)
    assert abs(run.values.mean() - exact_linear(X).mean()) < 0.1
    with pytest.raises(ValueError, match=r"every prior draw for 5 of 5 data.*spread\(model"):
        ais_log_likelihood(deterministic_model, X)

    def generator(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", DeterministicGenerator(z), obs=x)

    with pytest.raises(NotImplementedError, match="SpreadELBO"):
        ais_log_likelihood(generator, torch.tensor(1.0))


def test_the_exact_posterior_gives_the_exact_bound():
    x = torch.tensor([0.0, 2.0, -1.0])
    exact = ref.conjugate_evidence(1.0, x.numpy())
    bound = importance_weighted_bound(conjugate_model, conjugate_guide(), x, num_samples=20)
    np.testing.assert_allclose(bound.values, exact, atol=1e-5)
    np.testing.assert_allclose(bound.effective_sample_size, 20, rtol=1e-4)


def test_the_bound_tightens_with_samples():
    x = torch.linspace(-2, 2, 300)
    exact = ref.conjugate_evidence(1.0, x.numpy())
    gaps = []
    for num_samples in (1, 10, 300):
        guide = conjugate_guide(shift=0.2, width=1.4)
        bound = importance_weighted_bound(conjugate_model, guide, x, num_samples=num_samples)
        gaps.append((exact - bound.values).mean())
    # one sample: KL[q || p] of the two Gaussians
    kl = 0.5 * (1.4**2 - 1 - np.log(1.4**2)) + 0.2**2
    assert gaps[0] == pytest.approx(kl, abs=0.2)
    assert gaps[0] > 2 * gaps[1] > 10 * gaps[2] > -0.05
    assert abs(gaps[2]) < 0.01


def test_autoguides_and_latents_left_to_the_prior():
    x = torch.tensor([0.5, -1.0])
    for guide_type in (AutoNormal, AutoDiagonalNormal):
        guide = guide_type(global_model, init_scale=1.0)
        guide(x)
        bound = importance_weighted_bound(global_model, guide, x, num_samples=500)
        assert bound.values.shape == ()
        assert float(bound.values) == pytest.approx(exact_global(x), abs=0.2)

    def only_global(x):
        pyro.sample("mu", dist.Normal(0.0, 2.0))

    bound = importance_weighted_bound(global_model, only_global, x, num_samples=1000)
    assert float(bound.values) == pytest.approx(exact_global(x), abs=0.2)


def test_guides_without_density_are_refused():
    x = torch.tensor([0.5, -1.0])
    message = r"guide site 'z' has no density.*ais_log_likelihood"
    with pytest.raises(ValueError, match=message):
        importance_weighted_bound(conjugate_model, implicit_guide(), x)
    point = AutoDelta(conjugate_model)
    with pytest.raises(ValueError, match=message):
        importance_weighted_bound(conjugate_model, point, x)


def test_an_implicit_guide_works_in_stock_predictive():
    x = torch.linspace(-1, 1, 50)
    draws = Predictive(implicit_guide(), num_samples=400)(x)["z"]
    assert draws.shape == (400, 50)
    np.testing.assert_allclose(draws.mean(0), x / 2, atol=0.2)
    np.testing.assert_allclose(draws.std(0), 0.5**0.5, rtol=0.2)
    generated = Predictive(
        poutine.uncondition(conjugate_model), guide=implicit_guide(), num_samples=400
    )(x)["x"]
    assert generated.shape == (400, 50)
    np.testing.assert_allclose(generated.std(0), 1.5**0.5, rtol=0.2)


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=2) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def discrete(x):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def factored(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("f", -(z**2))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def tempered(x):
    with poutine.scale(scale=0.5):
        conjugate_model(x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: ais_log_likelihood(subsampled, x),
            ValueError,
            "site 'z' is scaled, by a subsampling plate or a scale handler",
        ),
        (
            lambda x: importance_weighted_bound(tempered, conjugate_guide(), x),
            ValueError,
            "site 'z' is scaled",
        ),
        (
            lambda x: ais_log_likelihood(poutine.uncondition(conjugate_model), x),
            ValueError,
            "the model observes nothing",
        ),
        (
            lambda x: ais_log_likelihood(
                poutine.condition(conjugate_model, data={"z": torch.zeros(4)}), x
            ),
            ValueError,
            r"no latent site, only \['x', 'z'\]: its log-likelihood is exact",
        ),
        (
            lambda x: ais_log_likelihood(discrete, x[0]),
            NotImplementedError,
            "site 'z' is a discrete latent.*importance_weighted_bound",
        ),
        (
            lambda x: ais_log_likelihood(conjugate_model, x, num_chains=0),
            ValueError,
            "`num_chains` must be an integer of at least 1",
        ),
        (
            lambda x: importance_weighted_bound(
                conjugate_model, conjugate_guide(), x, num_samples=0
            ),
            ValueError,
            "`num_samples` must be an integer of at least 1",
        ),
        (
            lambda x: simulation_based_calibration(
                conjugate_model, conjugate_guide(), x, sites=["w"]
            ),
            ValueError,
            r"sites=\['w'\]: .* both model and guide draw; those are \['z'\]",
        ),
        (
            lambda x: simulation_based_calibration(factored, lambda x: discrete(x), x[0]),
            ValueError,
            "site 'f'",
        ),
        (
            lambda x: simulation_based_calibration(subsampled, conjugate_guide(), x),
            ValueError,
            r"simulates data of shape \(2,\), but its argument 'x' has the shape \(4,\)",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.tensor([0.0, 1.0, 2.0, 3.0]))
