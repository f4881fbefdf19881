# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The example of a table on disk runs in both backends, on its own table and on another's."""

import numpy as np
import pytest
from example_runs import run_example, summary
from scipy.integrate import solve_ivp
from studies import stored_study as study


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    stdout = run_example("stored_table", backend, tmp_path / "first", "--smoke-test").stdout
    results = summary(tmp_path / "first")
    assert list(results["width"]) == list(study.PRIOR)
    assert all(f"{value:.3f}" in stdout for value in results["width"].values())
    assert (tmp_path / "first" / "stored_table.png").read_bytes().startswith(b"\x89PNG")
    # The other backend reads the same file, and runs no simulator.
    other = {"pyro": "numpyro", "numpyro": "pyro"}[backend]
    table = str(tmp_path / "first" / "table.nc")
    run_example("stored_table", other, tmp_path / "second", "--smoke-test", "--table", table)
    assert list(summary(tmp_path / "second")["width"]) == list(study.PRIOR)
    assert not (tmp_path / "second" / "table.nc").exists()


def test_the_pendulum_follows_its_equation():
    length, friction = np.array([0.6, 1.4]), np.array([0.1, 0.5])
    runs = [study.pendulum(np.random.default_rng(seed), length, friction) for seed in range(100)]
    mean = np.mean(runs, 0)
    assert mean.shape == (2, study.NUM_TIMES)
    for row, (own, loss) in enumerate(zip(length, friction, strict=True)):

        def flow(_, state, own=own, loss=loss):
            return state[1], -9.81 / own * np.sin(state[0]) - loss * state[1]

        path = solve_ivp(flow, (0, 10), [1, 0], t_eval=study.TIMES, rtol=1e-8)
        np.testing.assert_allclose(mean[row], path.y[0], atol=5 * study.ERROR / 10 + 0.04)
