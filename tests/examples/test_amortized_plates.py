# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The example of plates runs in both backends, and its closed form is that of the program."""

import numpy as np
import pytest
from example_runs import run_example, summary
from studies import plates_study as study


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    stdout = run_example("amortized_plates", backend, tmp_path, "--smoke-test").stdout
    results = summary(tmp_path)
    assert list(results) == list(study.DATA_SETS)
    for values in results.values():
        assert all(f"{value:.3f}" in stdout for value in values.values())
    assert (tmp_path / "amortized_plates.png").read_bytes().startswith(b"\x89PNG")


def test_the_closed_form_is_that_of_the_joint_normal():
    data = study.data_set((1, 4, 6), seed=3)
    where = [(group, place) for group, size in enumerate((1, 4, 6)) for place in range(size)]
    # mu, three groups, all measurements as one multivariate normal.
    loading = np.zeros((4 + len(where), 4 + len(where)))
    loading[:, 0] = study.MEAN_SCALE
    loading[range(1, 4), range(1, 4)] = study.BETWEEN
    for row, (group, _) in enumerate(where, start=4):
        loading[row, 1 + group], loading[row, row] = study.BETWEEN, study.WITHIN
    covariance = loading @ loading.T
    gain = covariance[:4, 4:] @ np.linalg.inv(covariance[4:, 4:])
    mean = gain @ [data["y"][place] for place in where]
    deviation = np.sqrt(np.diag(covariance[:4, :4] - gain @ covariance[4:, :4]))
    found = study.exact(data)
    np.testing.assert_allclose(np.append(found["mu"][0], found["theta"][0]), mean, rtol=1e-6)
    np.testing.assert_allclose(np.append(found["mu"][1], found["theta"][1]), deviation, rtol=1e-6)


def test_exact_draws_have_no_error_and_others_have():
    data, rng = study.data_set((2, 5), seed=0), np.random.default_rng(0)
    answer = study.exact(data)
    theta = np.zeros((100_000, study.MOST_GROUPS, 1))
    theta[:, :2, 0] = rng.normal(*answer["theta"], (100_000, 2))
    mu = rng.normal(*answer["mu"], 100_000)
    assert max(study.judge({"mu": mu, "theta": theta}, data).values()) < 0.02
    wrong = study.judge({"mu": mu + answer["mu"][1], "theta": 2 * theta}, data)
    assert wrong["mean mu"] == pytest.approx(1, abs=0.02)
    assert wrong["sd theta"] == pytest.approx(1, abs=0.02)
