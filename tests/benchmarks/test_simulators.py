# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The task that the benchmarks add: its exact posterior is that of its simulator."""

from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def task(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import simulators

    return simulators.TWO_MOONS


@pytest.mark.parametrize("theta", [(0.3, 0.2), (-0.95, -0.9), (0.02, -0.01)])
def test_two_moons_posterior_agrees_with_simulations_near_x(task, theta):
    rng = np.random.default_rng(0)
    x = task.simulate(rng, np.array([theta]))[0]
    # Near a corner the box cuts the posterior; where the sum is small, its sign does.
    near = np.concatenate(
        [
            parameters[np.abs(task.simulate(rng, parameters) - x).max(-1) < 0.01]
            for parameters in (task.draw_prior(rng, 500_000) for _ in range(6))
        ]
    )
    draws = task.draw_posterior(rng, x, 20_000)
    assert draws.shape == (20_000, 2)
    assert task.in_support(draws).all()
    assert len(near) > 150

    def features(theta):
        total, difference = theta[:, 0] + theta[:, 1], theta[:, 1] - theta[:, 0]
        return np.stack([np.abs(total), difference, total > 0, total**2, difference**2], -1)

    error = features(near).std(0) / np.sqrt(len(near))
    gap = np.abs(features(draws).mean(0) - features(near).mean(0))
    assert (gap < 4 * error + 2e-3).all(), (gap, error)
