# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The simulator examples run in both backends and reach the C2ST that they are meant to reach."""

import bz2

import numpy as np
import pytest
from example_runs import run_example, summary
from scipy import stats
from studies import simulator_study as study
from studies.simulator_tasks import TASKS, Table, load_observations


def run(backend, output, *options):
    """What the program printed, and its summary."""
    done = run_example("simulator", backend, output, *options)
    return done.stdout, summary(output)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    losses = ["npe", "reverse-kl"]
    stdout, summary = run(
        backend, tmp_path, "--smoke-test", "--tasks", "gaussian_mixture", "--losses", *losses
    )
    for loss in losses:
        (result,) = summary[f"gaussian_mixture {loss}"]
        (score,) = result["c2st"]
        assert f"{study.LOSSES[loss]:<21}{score:>15.3f}" in stdout
        # What starts at the Gaussian is near the posterior; a prior as wide as the box is at 1.
        assert 0.3 < score < 0.95
        assert 0 <= result["outside"] < 0.5
    assert (tmp_path / "gaussian_mixture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_both_kinds_of_guide_reach_the_mixture(backend, tmp_path):
    losses = ["npe", "reverse-kl"]
    _, summary = run(
        backend, tmp_path, "--tasks", "gaussian_mixture", "--losses", *losses, "--seed", "20"
    )
    for loss in losses:
        (result,) = summary[f"gaussian_mixture {loss}"]
        assert np.mean(result["c2st"]) < study.limit("gaussian_mixture", loss)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_a_density_guide_reaches_the_linear_gaussian(backend, tmp_path):
    _, summary = run(backend, tmp_path, "--tasks", "gaussian_linear", "--losses", "npe")
    (result,) = summary["gaussian_linear npe"]
    assert np.mean(result["c2st"]) < study.limit("gaussian_linear", "npe")


def test_mixture_posterior_is_the_likelihood_inside_of_the_box():
    """The mean of theta_1 at x in a corner, against the truncated Normals in closed form."""
    x = np.array([9.5, -9.9])
    draws = TASKS["gaussian_mixture"].draw_posterior(np.random.default_rng(0), x, 200_000)
    means, masses = [], []
    for std in (1.0, 0.1):
        normals = [stats.truncnorm((-10 - m) / std, (10 - m) / std, m, std) for m in x]
        means.append([normal.mean() for normal in normals])
        masses.append(np.prod([np.diff(stats.norm(m, std).cdf([-10, 10])) for m in x]))
    expected = np.average(means, axis=0, weights=masses)
    np.testing.assert_allclose(draws.mean(0), expected, atol=5e-3)
    assert TASKS["gaussian_mixture"].in_support(draws).all()


def test_linear_posterior_recovers_theta():
    """Regressing theta on x over the joint gives back the posterior's mean and variance."""
    task, rng = TASKS["gaussian_linear"], np.random.default_rng(0)
    theta = task.draw_prior(rng, 100_000)
    x = task.simulate(rng, theta)
    draws = task.draw_posterior(rng, x[0], 100_000)
    slope = (theta * x).sum() / (x**2).sum()
    np.testing.assert_allclose(draws.mean(0), slope * x[0], atol=6e-3)
    assert draws.var(0).mean() == pytest.approx((theta - slope * x).var(), rel=0.02)


@pytest.mark.parametrize("name", list(TASKS))
def test_table_brings_scales_there_and_back(name):
    task = TASKS[name]
    table = Table.simulate(task, 500, seed=3)
    rng = np.random.default_rng(3)
    theta = task.draw_prior(rng, 500)
    x = task.simulate(rng, theta)
    np.testing.assert_allclose(table.theta.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(table.x.std(0), 1, rtol=1e-6)
    np.testing.assert_allclose(table.theta.std(0), 1, rtol=1e-6)
    np.testing.assert_allclose(table.theta.T @ table.x, 0, atol=1e-3)  # uncorrelated
    np.testing.assert_allclose(table.unscale_theta(table.theta, table.x), theta, atol=1e-5)
    np.testing.assert_allclose(table.scale_theta(theta, table.x), table.theta, atol=1e-5)
    np.testing.assert_allclose(table.scale_x(x), table.x, atol=1e-6)


def test_table_is_split_without_loss():
    table = Table.simulate(TASKS["gaussian_mixture"], 50, seed=0)
    train, held_out = table.split(0.2)
    assert len(train.x) == 40
    np.testing.assert_array_equal(np.concatenate([train.theta, held_out.theta]), table.theta)
    np.testing.assert_array_equal(np.concatenate([train.x, held_out.x]), table.x)
    np.testing.assert_array_equal(held_out.scale_x(np.ones(2)), table.scale_x(np.ones(2)))


def test_observations_are_read_from_the_layout_of_the_benchmark(tmp_path):
    posterior = np.arange(20.0).reshape(10, 2)
    for index in (1, 2):
        folder = tmp_path / "gaussian_mixture" / f"num_observation_{index}"
        folder.mkdir(parents=True)
        (folder / "true_parameters.csv").write_text(f"parameter_1,parameter_2\n{index},2.5\n")
        (folder / "observation.csv").write_text(f"data_1,data_2\n{index},-1.5\n")
        lines = "\n".join(",".join(map(str, row)) for row in posterior)
        packed = bz2.compress(f"parameter_1,parameter_2\n{lines}\n".encode())
        (folder / "reference_posterior_samples.csv.bz2").write_bytes(packed)
    first, second = load_observations(TASKS["gaussian_mixture"], 4, tmp_path, 2)
    np.testing.assert_array_equal(first.posterior, posterior[:4])
    np.testing.assert_array_equal(first.x, [1, -1.5])
    np.testing.assert_array_equal(second.theta, [2, 2.5])


def test_observations_come_from_prior_and_simulator():
    task = TASKS["gaussian_mixture"]
    observations = load_observations(task, 100)
    assert len(observations) == 3
    assert len({tuple(o.theta) for o in observations}) == 3
    again = load_observations(task, 100, num=2)
    for o, same in zip(observations, again, strict=False):
        np.testing.assert_array_equal(o.posterior, same.posterior)
        assert np.abs(o.x - o.theta).max() < 6


def test_excluded_draws_are_drawn_again():
    task, table = TASKS["gaussian_mixture"], Table.simulate(TASKS["gaussian_mixture"], 500, 0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2))

    def draw(num):
        # A Normal on the lower edge of the box in the first coordinate only.
        theta = np.array([-10.0, 0.0]) + 0.1 * rng.standard_normal((3, num, 2))
        return table.scale_theta(theta, x[:, None])

    draws, outside = study.draw_allowed(task, study.Fit(draw, 0.0), table, x, 1000)
    assert len(draws) == 3
    assert all(task.in_support(d).all() for d in draws)
    assert outside == pytest.approx(0.5, abs=0.03)
    kept, _ = study.draw_allowed(task, study.Fit(draw, 0.0), table, x, 1000, max_rounds=0)
    assert 0.4 < np.mean([task.in_support(d).mean() for d in kept]) < 0.6


def test_draws_that_stay_outside_are_judged_as_they_are():
    task, table = TASKS["gaussian_mixture"], Table.simulate(TASKS["gaussian_mixture"], 500, 0)
    x = np.array([[-1.5, 1.5]])
    fit = study.Fit(lambda num: np.full((1, num, 2), -30.0), 0.0)
    (draws,), outside = study.draw_allowed(task, fit, table, x, 10, max_rounds=3)
    assert outside == 1
    np.testing.assert_allclose(draws, table.unscale_theta(np.full((10, 2), -30.0), x))


def test_limits():
    assert study.limit("gaussian_mixture", "npe") == 0.58
    assert study.limit("gaussian_mixture", "js") == 0.62
    assert study.limit("gaussian_linear", "reverse-kl") == 0.552
