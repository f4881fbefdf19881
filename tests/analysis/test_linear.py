# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Linear deterministic decoders: delta-PCA, exact posterior, evidence and ELBO."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from spread_analysis import reference as ref

DIM, LATENTS, SCALE = 5, 2, 0.6


@pytest.fixture(name="problem")
def make_problem():
    rng = np.random.default_rng(0)
    loading, offset = rng.standard_normal((DIM, LATENTS)), rng.standard_normal(DIM)
    return loading, offset, rng.standard_normal((7, DIM))


@pytest.fixture(name="covariance")
def make_covariance():
    factor = np.random.default_rng(1).standard_normal((DIM, DIM))
    return factor @ factor.T


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0])
def test_delta_pca_is_where_the_spread_kl_is_smallest(covariance, scale):
    best = ref.delta_pca_optimum(covariance, LATENTS)

    spread = covariance + scale**2 * np.eye(DIM)

    def objective(flat):
        loading = flat.reshape(DIM, LATENTS)
        precision = np.linalg.inv(loading @ loading.T + scale**2 * np.eye(DIM))
        gradient = (precision - precision @ spread @ precision) @ loading
        kl = ref.spread_gaussian_kl(covariance, loading @ loading.T, scale)
        return kl, gradient.ravel()

    start = np.random.default_rng(2).standard_normal(DIM * LATENTS)
    found = optimize.minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-8})
    loading = found.x.reshape(DIM, LATENTS)
    # The search stops where the KL no longer changes in float64, the root of it in the argument.
    np.testing.assert_allclose(loading @ loading.T, best, atol=1e-5 * np.abs(best).max())
    residual = ref.delta_pca_residual(covariance, LATENTS, scale)
    np.testing.assert_allclose(found.fun, residual, rtol=1e-6)
    np.testing.assert_allclose(
        ref.spread_gaussian_kl(covariance, best, scale), residual, rtol=1e-10
    )


def test_delta_pca_of_a_diagonal():
    covariance = np.diag([1.0, 9.0, 4.0])
    np.testing.assert_allclose(ref.delta_pca_optimum(covariance, 2), np.diag([0.0, 9.0, 4.0]))
    np.testing.assert_allclose(ref.delta_pca_optimum(covariance, 3), covariance)
    np.testing.assert_allclose(
        ref.delta_pca_residual(covariance, 2, 0.5), 0.5 * (4 - np.log(5)), rtol=1e-14
    )


def test_one_sided_noise_is_biased(covariance):
    scale = 0.3
    biased = ref.delta_pca_one_sided_optimum(covariance, LATENTS, scale)
    top = np.linalg.eigvalsh(covariance)[::-1][:LATENTS]
    np.testing.assert_allclose(np.linalg.eigvalsh(biased)[::-1][:LATENTS], top - scale**2)

    # It is the maximum-likelihood solution: clean data under N(0, A A' + s^2 I).
    def loss(target, shrink):
        values, vectors = np.linalg.eigh(target)
        leading = vectors[:, -LATENTS:] * np.sqrt(values[-LATENTS:] - shrink)
        model = leading @ leading.T + scale**2 * np.eye(DIM)
        return np.trace(np.linalg.solve(model, covariance)) + np.linalg.slogdet(model)[1]

    values = [
        loss(covariance, shrink) for shrink in (0.0, 0.9 * scale**2, scale**2, 1.1 * scale**2)
    ]
    assert values.index(min(values)) == 2
    # Noise above the spectrum leaves nothing.
    assert not ref.delta_pca_one_sided_optimum(covariance, LATENTS, 1e3).any()


def test_marginal_is_the_multivariate_normal(problem):
    loading, offset, y = problem
    expected = stats.multivariate_normal(
        offset, loading @ loading.T + SCALE**2 * np.eye(DIM)
    ).logpdf(y)
    actual = ref.linear_marginal_log_prob(y, loading, SCALE, offset)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("scale", "x", "expected"),
    [(1.0, 2.0, -2.26551212), (0.1, 2.0, -2.90411172), (0.1, 5.0, -13.30015132)],
)
def test_known_evidence(scale, x, expected):
    actual = ref.linear_marginal_log_prob([x], [[1.0]], scale)
    np.testing.assert_allclose(actual, expected, atol=5e-9)


def test_posterior_is_bayes_rule(problem):
    loading, offset, y = problem
    mean, covariance = ref.linear_posterior(y, loading, SCALE, offset)
    z = np.random.default_rng(3).standard_normal((7, LATENTS))
    joint = stats.norm(z @ loading.T + offset, SCALE).logpdf(y).sum(-1)
    joint += stats.norm.logpdf(z).sum(-1)
    posterior = [
        stats.multivariate_normal(m, covariance).logpdf(v) for m, v in zip(mean, z, strict=True)
    ]
    evidence = ref.linear_marginal_log_prob(y, loading, SCALE, offset)
    np.testing.assert_allclose(joint - posterior, evidence, rtol=1e-11)


@pytest.mark.parametrize("latents", [1, 2, 5, 7])
@pytest.mark.parametrize("scale", [1e-4, 0.6, 1e3])
def test_elbo_at_the_posterior_is_the_evidence(latents, scale):
    rng = np.random.default_rng(4)
    loading, y = rng.standard_normal((DIM, latents)), rng.standard_normal((3, DIM))
    mean, covariance = ref.linear_posterior(y, loading, scale)
    np.testing.assert_allclose(
        ref.linear_elbo(y, loading, scale, mean, covariance),
        ref.linear_marginal_log_prob(y, loading, scale),
        rtol=1e-9,
        # Beyond the data's dimension the covariance has entries of 1, rounded to eps, of which the
        # ELBO sees the part along the loading, over s².
        atol=1e-6 * scale
        if latents <= DIM
        else np.finfo(float).eps * np.square(loading).sum() / scale**2,
    )


def test_gap_of_any_guide_is_its_kl(problem):
    loading, offset, y = problem
    rng = np.random.default_rng(5)
    guide_mean = rng.standard_normal((7, LATENTS))
    guide_covariance = np.array([[0.5, 0.2], [0.2, 0.3]])
    mean, covariance = ref.linear_posterior(y, loading, SCALE, offset)
    gap = ref.linear_marginal_log_prob(y, loading, SCALE, offset) - ref.linear_elbo(
        y, loading, SCALE, guide_mean, guide_covariance, offset
    )
    kl = [
        ref.gaussian_kl(q, guide_covariance, p, covariance)
        for q, p in zip(guide_mean, mean, strict=True)
    ]
    np.testing.assert_allclose(gap, kl, rtol=1e-10)


def test_expected_elbo_by_monte_carlo(problem):
    loading, offset, data = problem
    rng, num, x = np.random.default_rng(6), 100_000, data[0]
    gain, bias = rng.standard_normal((LATENTS, DIM)), rng.standard_normal(LATENTS)
    covariance = np.array([[0.5, 0.2], [0.2, 0.3]])
    y = x + SCALE * rng.standard_normal((num, DIM))
    draws = ref.linear_elbo(y, loading, SCALE, y @ gain.T + bias, covariance, offset)
    exact = ref.expected_linear_elbo(x, loading, SCALE, gain, covariance, offset, bias)
    assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(num)
    # The draws are quadratic in the noise: three cubature points per dimension are exact.
    steps = np.concatenate([np.eye(DIM), -np.eye(DIM)]) * SCALE * np.sqrt(DIM)
    cubature = ref.linear_elbo(
        x + steps, loading, SCALE, (x + steps) @ gain.T + bias, covariance, offset
    )
    np.testing.assert_allclose(cubature.mean(), exact, rtol=1e-12)


def test_scoring_the_clean_datum_gives_another_gradient(problem):
    # The expected log-likelihood scored at x instead of y differs by tr(I - A W) terms that depend
    # on the parameters: D/2 - tr(A W), so a scaled decoder is preferred.
    loading, _, data = problem
    x = data[:1]
    gain = np.linalg.pinv(loading)
    covariance = 0.1 * np.eye(LATENTS)

    def right(a):
        return ref.expected_linear_elbo(x, a * loading, SCALE, gain, covariance)[0]

    def wrong(a):
        at_y = right(a)
        residual = np.eye(DIM) - a * loading @ gain
        # E|x - A W y|^2 = |(I - A W) x|^2 + s^2 |A W|^2 against s^2 |I - A W|^2 at y.
        noise = np.square(residual).sum() - np.square(a * loading @ gain).sum()
        return at_y + 0.5 * noise

    step = 1e-5
    slopes = [(f(1 + step) - f(1 - step)) / (2 * step) for f in (right, wrong)]
    np.testing.assert_allclose(slopes[0] - slopes[1], np.trace(loading @ gain), rtol=1e-6)


@settings(deadline=None)
@given(
    dim=st.integers(1, 6),
    latents=st.integers(1, 8),
    log_scale=st.floats(-4, 4),
    seed=st.integers(0, 100),
)
def test_elbo_never_exceeds_the_evidence(dim, latents, log_scale, seed):
    rng = np.random.default_rng(seed)
    scale = 10.0**log_scale
    loading, y = rng.standard_normal((dim, latents)), rng.standard_normal(dim)
    root = rng.standard_normal((latents, latents))
    elbo = ref.linear_elbo(
        y, loading, scale, rng.standard_normal(latents), root @ root.T + 1e-3 * np.eye(latents)
    )
    evidence = ref.linear_marginal_log_prob(y, loading, scale)
    assert elbo <= evidence + 1e-9 * abs(evidence)


def test_perfect_reconstruction_costs_half_a_nat_per_dimension():
    num, dim, scale = 100_000, 3, 0.2
    noise = scale * np.random.default_rng(7).standard_normal((num, dim))
    draws = stats.norm(0, scale).logpdf(noise).sum(1)
    expected = ref.perfect_reconstruction_log_likelihood(dim, scale)
    assert abs(draws.mean() - expected) < 4 * np.sqrt(dim / 2 / num)
    np.testing.assert_allclose(expected, -1.5 * np.log(2 * np.pi * scale**2) - 1.5, rtol=1e-14)


def test_errors_name_the_argument(covariance):
    with pytest.raises(
        ValueError, match=r"`num_components` must be at most the dimension 5, got 6"
    ):
        ref.delta_pca_optimum(covariance, 6)
    with pytest.raises(
        ValueError, match="`num_components` must be an integer of at least 1, got 0"
    ):
        ref.delta_pca_optimum(covariance, 0)
    with pytest.raises(ValueError, match="`covariance` must be positive semi-definite"):
        ref.delta_pca_optimum(-covariance, 1)
    with pytest.raises(ValueError, match="`scale` must be positive"):
        ref.delta_pca_residual(covariance, 1, 0.0)
    with pytest.raises(ValueError, match=r"`y` must have shape \(..., 2\), got \(3,\)"):
        ref.linear_posterior(np.ones(3), np.ones((2, 1)), 1.0)
    with pytest.raises(ValueError, match=r"`x` must have shape \(..., 2\), got \(3,\)"):
        ref.expected_linear_elbo(np.ones(3), np.ones((2, 1)), 1.0, np.ones((1, 2)), [[1.0]])
    with pytest.raises(ValueError, match=r"`loading` must have shape \(dim, num_latents\)"):
        ref.linear_marginal_log_prob(np.ones(2), np.ones(2), 1.0)
    with pytest.raises(ValueError, match=r"`offset` must have shape \(2,\), got \(1,\)"):
        ref.linear_marginal_log_prob(np.ones(2), np.ones((2, 1)), 1.0, [0.0])
    with pytest.raises(ValueError, match="`guide_covariance` must be positive definite"):
        ref.linear_elbo(np.ones(2), np.ones((2, 1)), 1.0, [0.0], [[0.0]])
    with pytest.raises(ValueError, match=r"`guide_mean` must have shape \(..., 1\), got \(2,\)"):
        ref.linear_elbo(np.ones(2), np.ones((2, 1)), 1.0, [0.0, 0.0], [[1.0]])
    with pytest.raises(ValueError, match=r"`guide_loading` must have shape \(1, 2\), got \(2, 1\)"):
        ref.expected_linear_elbo(np.ones(2), np.ones((2, 1)), 1.0, np.ones((2, 1)), [[1.0]])
    with pytest.raises(ValueError, match=r"`dim` must be an integer of at least 1, got 1.5"):
        ref.perfect_reconstruction_log_likelihood(1.5, 1.0)
