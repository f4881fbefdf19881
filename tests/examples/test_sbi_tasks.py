# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The ten tasks are those of the benchmark: closed forms, its files where they are, other solvers.

Set ``SBIBM_DIR`` to the folder of its observations and reference draws to compare with these too.
"""

import bz2
import os

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp
from studies.sbi_tasks import SBI_TASKS, Prior
from studies.sbi_tasks.coins import design_matrix
from studies.sbi_tasks.dynamics import infected, populations
from studies.sbi_tasks.observations import available, load_observation
from studies.sbi_tasks.ode import solve
from studies.sbi_tasks.slcp import distractors

SBIBM_DIR = os.environ.get("SBIBM_DIR")
with_files = pytest.mark.skipif(not SBIBM_DIR, reason="SBIBM_DIR is not set")
CLOSED = [name for name, task in SBI_TASKS.items() if task.draw_posterior]

# Observation 4 of the benchmark: theta behind it, and x.
OBSERVED = {
    "sir": ([0.3581495, 0.089096606], [0, 0, 8, 349, 222, 62, 17, 6, 1, 0]),
    "lotka_volterra": (
        [0.83722633, 0.074230194, 1.6819013, 0.012352898],
        [
            *(28.209, 164.99, 222.81, 15.183, 71.550, 448.10, 15.183, 26.995, 159.42, 314.50),
            *(1.1302, 0.23489, 64.721, 4.2321, 0.36107, 0.90437, 26.028, 1.2092, 0.23615, 48.007),
        ],
    ),
    "slcp": (
        [-2.407025, 0.034922123, 1.4813509, 0.36865616, -2.4579406],
        [-1.6371, -0.0373, -1.5623, 0.0312, -3.6831, 0.0995, -1.7389, 0.0310],
    ),
}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", list(SBI_TASKS))
def test_shapes_seeds_and_supports(name):
    task = SBI_TASKS[name]
    theta, x = task.run_prior(50, seed=3)
    assert theta.shape == (50, task.dim)
    assert x.shape == (50, task.num_data)
    assert theta.dtype == x.dtype == np.float32
    assert np.isfinite(x).all()
    assert task.in_support(theta).all()
    for one, again in zip((theta, x), task.run_prior(50, seed=3), strict=True):
        np.testing.assert_array_equal(one, again)
    # As a program sees it: site by site, and back.
    values = task.split(theta)
    assert list(values) == list(task.priors)
    np.testing.assert_array_equal(task.join(values), theta)
    simulated = task.run(rng(1), *values.values())
    np.testing.assert_array_equal(simulated, task.simulate(rng(1), theta.astype(float)))


@pytest.mark.parametrize(
    "prior",
    [
        Prior("Uniform", {"low": np.array([-1.0, 2.0]), "high": np.array([1.0, 5.0])}),
        Prior("Normal", {"loc": np.array([1.0, 2.0]), "scale": np.array([0.5, 3.0])}),
        Prior("LogNormal", {"loc": -1.0, "scale": 0.5}),
        SBI_TASKS["bernoulli_glm"].priors["theta"],
    ],
)
def test_priors_have_the_moments_of_their_names(prior):
    parameters, num = prior.parameters, 200_000
    draws = prior.draw(rng(), num)
    assert draws.shape == (num, *prior.shape)
    if prior.distribution == "Uniform":
        low, high = parameters["low"], parameters["high"]
        mean, covariance = (low + high) / 2, np.diag((high - low) ** 2 / 12)
    elif prior.distribution == "MultivariateNormal":
        mean, covariance = parameters["loc"], np.linalg.inv(parameters["precision_matrix"])
    else:
        draws = np.log(draws) if prior.distribution == "LogNormal" else draws
        mean = parameters["loc"]
        covariance = np.diag(np.atleast_1d(parameters["scale"]) ** 2)
    std = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 5 * std / np.sqrt(num))
    scaled = np.atleast_2d(np.cov(draws.T)) / np.outer(std, std)
    np.testing.assert_allclose(scaled, covariance / np.outer(std, std), atol=0.015)


def test_support_is_the_box_of_the_prior():
    task = SBI_TASKS["two_moons"]
    assert task.in_support(np.array([[0.5, -0.5], [0.5, 1.01], [-1.2, 0]])).tolist() == [1, 0, 0]
    assert not SBI_TASKS["sir"].in_support(np.array([0.5, -0.1]))


def test_solver_agrees_with_scipy():
    for name, solved, start in [
        ("lotka_volterra", lambda theta: np.log(populations(theta)), np.log([30.0, 1.0])),
        ("sir", lambda theta: infected(theta), np.array([1 - 1e-6, 1e-6])),
    ]:
        theta = SBI_TASKS[name].draw_prior(rng(1), 40)
        answer = solved(theta)
        for row, parameters in zip(answer, theta, strict=True):
            if name == "sir":
                times = 17.0 * np.arange(10)

                def slope(t, y, beta, gamma):
                    return [-beta * y[0] * y[1], beta * y[0] * y[1] - gamma * y[1]]
            else:
                times = 2.1 * np.arange(10)

                def slope(t, y, alpha, beta, gamma, delta):
                    return [alpha - beta * np.exp(y[1]), delta * np.exp(y[0]) - gamma]

            exact = solve_ivp(
                slope, (0, times[-1]), start, "DOP853", times, args=parameters, rtol=1e-11,
                atol=1e-13,
            )  # fmt: skip
            expected = exact.y[1] if name == "sir" else exact.y.ravel()
            np.testing.assert_allclose(row, expected, atol=2e-5 if name != "sir" else 1e-7)


def test_each_row_has_its_own_step_size():
    rates = np.array([[0.01], [1.0], [300.0]])
    times = np.array([0.0, 0.1, 1.0])
    y = solve(lambda y, rates: -rates * y, np.ones((3, 1)), rates, times)
    np.testing.assert_allclose(y[..., 0], np.exp(-rates * times), rtol=1e-6, atol=1e-9)


def test_a_row_that_needs_too_many_steps_is_nan_alone():
    rates = np.array([[1.0], [1e6]])
    times = np.array([0.0, 1.0, 2.0])
    y = solve(lambda y, rates: -rates * y, np.ones((2, 1)), rates, times, max_steps=500)
    np.testing.assert_allclose(y[0, :, 0], np.exp(-times), rtol=1e-6)
    assert np.isnan(y[1, 1:]).all()


def test_fixed_parts_are_those_of_the_benchmark():
    matrix = design_matrix()
    np.testing.assert_allclose(matrix[2, :4], [1, 0.647688568, -0.138264298, 0.496714145])
    precision = SBI_TASKS["bernoulli_glm"].priors["theta"].parameters["precision_matrix"]
    np.testing.assert_allclose(precision[0], [0.5, *np.zeros(9)])
    np.testing.assert_allclose(precision[1, :4], [0, 6, -14 / 3, 1 + np.sqrt(2 / 9)])
    np.testing.assert_allclose(precision[9, 9], (1 + np.sqrt(8 / 9)) ** 2)
    locations, factors, order = distractors()
    np.testing.assert_allclose(locations[0, :2], [7.450712, -2.0739646], rtol=1e-6)
    np.testing.assert_allclose(factors[0, 0, 0], 3.4233248, rtol=1e-6)
    assert order[:3].tolist() == [87, 47, 39]
    assert sorted(order) == list(range(100))


def test_distractors_hide_the_eight_numbers_and_have_their_medians():
    task, theta = SBI_TASKS["slcp_distractors"], np.tile([1.0, -1.0, 0.1, 0.1, 0.0], (20_000, 1))
    x = task.simulate(rng(), theta)
    locations, factors, order = distractors()
    back = np.empty_like(x)
    back[:, order] = x
    np.testing.assert_allclose(back[:, :8].mean(0), [1, -1] * 4, atol=1e-3)
    # Student t with two degrees of freedom has this distribution function.
    at = locations[3, 5]
    scales = np.sqrt(np.square(factors[:, 5]).sum(-1))
    share = stats.t(2, locations[:, 5], scales).cdf(at).mean()
    assert (back[:, 8 + 5] < at).mean() == pytest.approx(share, abs=5 * 0.5 / np.sqrt(len(x)))


def test_slcp_has_the_covariance_of_its_parameters():
    theta = np.tile([0.5, -1.0, 1.2, -0.8, 0.7], (50_000, 1))
    points = SBI_TASKS["slcp"].simulate(rng(), theta).reshape(-1, 2)
    first, second = 1.44, 0.64
    shared = np.tanh(0.7) * first * second
    expected = [[first**2, shared], [shared, second**2]]
    np.testing.assert_allclose(points.mean(0), [0.5, -1], atol=0.02)
    np.testing.assert_allclose(np.cov(points.T), expected, rtol=0.03)


def test_coins_fall_by_the_logits():
    theta = np.tile(0.3 * np.arange(-5, 5), (20_000, 1))
    heads = SBI_TASKS["bernoulli_glm_raw"].simulate(rng(), theta)
    assert set(np.unique(heads)) == {0.0, 1.0}
    probability = 1 / (1 + np.exp(-theta[0] @ design_matrix().T))
    error = np.sqrt(probability * (1 - probability) / len(theta))
    assert (np.abs(heads.mean(0) - probability) < 5 * error + 1e-9).all()
    statistics = SBI_TASKS["bernoulli_glm"].simulate(rng(), theta)
    np.testing.assert_allclose(statistics, heads @ design_matrix(), atol=1e-12)


@pytest.mark.parametrize("name", list(OBSERVED))
def test_an_observation_of_the_benchmark_is_plausible(name):
    theta, x = map(np.array, OBSERVED[name])
    _check_plausible(SBI_TASKS[name], theta, x)


def _check_plausible(task, theta, x):
    simulated = task.simulate(rng(), np.tile(theta, (4000, 1)))
    ranks = (simulated < x).mean(0) + 0.5 * (simulated == x).mean(0)
    # Of a hundred columns one may be among the last thousandth, not more.
    assert (np.minimum(ranks, 1 - ranks) > 0.01 / task.num_data).all(), ranks
    assert abs(ranks.mean() - 0.5) < 0.3


def test_closed_posterior_of_the_box_is_a_cut_normal():
    x = np.array([-1.2, 0.0, 0.9, *np.zeros(7)])
    draws = SBI_TASKS["gaussian_linear_uniform"].draw_posterior(rng(), x, 50_000)
    std = np.sqrt(0.1)
    for column, centre in zip(draws.T[:3], x[:3], strict=True):
        cut = stats.truncnorm((-1 - centre) / std, (1 - centre) / std, centre, std)
        assert stats.kstest(column, cut.cdf).pvalue > 1e-4


def test_without_files_observations_are_drawn_where_the_posterior_is_known():
    assert len(CLOSED) == 4
    assert available(SBI_TASKS["sir"], None) == []
    for name in CLOSED:
        task = SBI_TASKS[name]
        assert available(task, None) == [1, 2, 3]
        one, again = (load_observation(task, 2, num_draws=20) for _ in range(2))
        np.testing.assert_array_equal(one.posterior, again.posterior)
        assert one.posterior.shape == (20, task.dim)
        assert one.x.shape == (task.num_data,)
    with pytest.raises(ValueError, match=r"posterior of sir has no closed form: pass `data_dir`"):
        load_observation(SBI_TASKS["sir"], 1)


@pytest.mark.parametrize("below", ["slcp", "slcp/files"])
def test_files_are_read_from_the_layout_of_the_benchmark(tmp_path, below):
    task = SBI_TASKS["slcp_distractors"]  # its files lie in the folder of slcp
    folder = tmp_path / below / "num_observation_5"
    folder.mkdir(parents=True)
    assert available(task, tmp_path) == []
    for name, count in [("true_parameters", 5), ("observation_distractors", 100)]:
        row = ",".join(map(str, range(count)))
        (folder / f"{name}.csv").write_text(f"{row}\n{row}\n")
    lines = "\n".join(["1,2,3,4,5"] * 4)
    packed = bz2.compress(f"a,b,c,d,e\n{lines}\n".encode())
    (folder / "reference_posterior_samples.csv.bz2").write_bytes(packed)
    assert available(task, tmp_path) == [5]
    assert available(SBI_TASKS["slcp"], tmp_path) == []
    observation = load_observation(task, 5, tmp_path, num_draws=3)
    np.testing.assert_array_equal(observation.x, np.arange(100))
    assert observation.posterior.shape == (3, 5)


def _log_likelihood(name, theta, x):
    """Up to a constant, of every row of theta."""
    if name == "slcp":
        first, second = theta[:, 2] ** 2, theta[:, 3] ** 2
        rho = np.tanh(theta[:, 4])
        u = (x[0::2] - theta[:, [0]]) / first[:, None]
        v = (x[1::2] - theta[:, [1]]) / second[:, None]
        form = (u * u - 2 * rho[:, None] * u * v + v * v) / (1 - rho**2)[:, None]
        return -form.sum(1) / 2 - 4 * np.log(first * second * np.sqrt(1 - rho**2))
    if name == "bernoulli_glm":
        precision = SBI_TASKS[name].priors["theta"].parameters["precision_matrix"]
        logits = theta @ design_matrix().T
        prior = -0.5 * np.einsum("ni,ij,nj->n", theta, precision, theta)
        return theta @ x - np.logaddexp(0, logits).sum(1) + prior
    # In log theta, where the prior is Normal.
    priors = SBI_TASKS[name].priors.values()
    loc, scale = (np.array([p.parameters[k] for p in priors]) for k in ("loc", "scale"))
    prior = -0.5 * np.square((theta - loc) / scale).sum(1)
    if name == "sir":
        return stats.binom.logpmf(x, 1000, infected(np.exp(theta))).sum(1) + prior
    gap = np.log(x) - np.log(populations(np.exp(theta)))
    return -0.5 * np.square(gap / 0.1).sum(1) + prior


@with_files
@pytest.mark.parametrize("name", ["slcp", "bernoulli_glm", "sir", "lotka_volterra"])
def test_reference_draws_satisfy_steins_identity(name):
    """E[f' + f d log p / d theta] = 0 for an f that vanishes where the prior ends."""
    task = SBI_TASKS[name]
    for number in available(task, SBIBM_DIR):
        observation = load_observation(task, number, SBIBM_DIR)
        theta = observation.posterior
        if name in ("sir", "lotka_volterra"):
            theta = np.log(theta)
        for k in range(task.dim):
            move = 1e-5 * np.eye(task.dim)[k]
            ends = [_log_likelihood(name, theta + s * move, observation.x) for s in (1, -1)]
            score = (ends[0] - ends[1]) / 2e-5
            # The second factor tames the pole of slcp's likelihood where a scale is zero.
            inside = 9 - theta[:, k] ** 2 if name == "slcp" else np.ones(len(theta))
            slope = -2 * theta[:, k] if name == "slcp" else np.zeros(len(theta))
            terms = slope + inside * score
            error = terms.std() / np.sqrt(len(terms))
            assert abs(terms.mean()) < 4.5 * error, (number, k, terms.mean(), error)


@with_files
@pytest.mark.parametrize("name", CLOSED)
def test_closed_posteriors_are_those_of_the_reference_draws(name):
    task = SBI_TASKS[name]
    for number in available(task, SBIBM_DIR):
        observation = load_observation(task, number, SBIBM_DIR)
        draws = task.draw_posterior(rng(), observation.x, 10_000)
        for ours, theirs in zip(draws.T, observation.posterior.T, strict=True):
            assert stats.ks_2samp(ours, theirs).pvalue > 1e-4


@with_files
@pytest.mark.parametrize("name", list(SBI_TASKS))
def test_every_observation_of_the_benchmark_is_plausible(name):
    task = SBI_TASKS[name]
    numbers = available(task, SBIBM_DIR)
    assert numbers
    for number in numbers:
        observation = load_observation(task, number, SBIBM_DIR)
        _check_plausible(task, observation.theta, observation.x)
        assert observation.posterior.shape == (10_000, task.dim)
        assert task.in_support(observation.posterior).all()
