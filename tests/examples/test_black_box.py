# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The examples of black boxes run in both backends, and their guides cover the truth."""

import numpy as np
import pytest
from example_runs import run_example, summary
from scipy.integrate import odeint
from studies import black_box_study as study


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    stdout = run_example("black_box", backend, tmp_path, "--smoke-test").stdout
    results = summary(tmp_path)
    assert list(results) == ["ode", "program"]
    for simulator, sites in results.items():
        for site, values in sites.items():
            assert 0 <= values["covered by 50 %"] <= values["covered by 90 %"] <= 1
            numbers = "".join(f"{value:>8.2f}" for value in values.values())
            assert f"{simulator:>10} {site:>6}{numbers}" in stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_the_guide_covers_the_truth_and_is_narrower_than_the_prior(backend, tmp_path):
    run_example("black_box", backend, tmp_path, "--simulators", "ode", "--num-tests", "500")
    for site, width in (("beta", 0.25), ("gamma", 0.7)):
        values = summary(tmp_path)["ode"][site]
        assert values["width"] < width
        assert 0.4 < values["covered by 50 %"] < 0.7
        assert 0.83 < values["covered by 90 %"] < 0.99


def test_the_equations_are_solved_for_each_run():
    """Means of the counts, against another solver that takes one run at a time."""
    beta, gamma = np.array([0.9, 0.3]), np.array([0.3, 0.1])
    counts = [study.run_ode(np.random.default_rng(seed), beta, gamma) for seed in range(200)]
    for row, (b, g) in enumerate(zip(beta, gamma, strict=True)):
        start, days = [1 - study.ILL, study.ILL], np.r_[0, study.DAYS]
        path = odeint(lambda y, _, b=b, g=g: [-b * y[0] * y[1], (b * y[0] - g) * y[1]], start, days)
        share = np.clip(path[1:, 1], 0, 1)
        error = np.sqrt(share * (1 - share) / study.PEOPLE / 200)
        mean = np.mean(counts, 0)[row] / study.PEOPLE
        assert np.all(np.abs(mean - share) < 5 * error + 5e-4)


def test_the_program_is_repeated_by_its_seed_and_fails_as_nan():
    runs = [study.run_program(np.random.default_rng(seed), 0.5, 0.1) for seed in (0, 0, 1)]
    assert runs[0].shape == (study.NUM_DAYS,)
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.any(runs[0] != runs[2])
    assert np.isnan(study.run_program(np.random.default_rng(0), "fast", 0.1)).all()
