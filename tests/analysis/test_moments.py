# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The cost of predicting a Gaussian from the moments of its draws."""

import numpy as np
import pytest
from scipy import integrate, stats

from spread_core.moments import (
    default_critic_draws,
    default_moment_draws,
    predictive_regret,
)


@pytest.mark.parametrize("num_draws", [3, 8, 32])
def test_the_regret_is_what_draws_say(num_draws):
    rng = np.random.default_rng(num_draws)
    draws = 2.0 + 0.3 * rng.standard_normal((200_000, num_draws + 1))
    seen, new = draws[:, 1:], draws[:, 0]
    predicted = stats.t.logpdf(
        new, num_draws - 1, seen.mean(1), seen.std(1, ddof=1) * np.sqrt(1 + 1 / num_draws)
    )
    loss = stats.norm.logpdf(new, 2.0, 0.3) - predicted
    error = loss.std() / np.sqrt(len(loss))
    assert error < 0.02 * predictive_regret(num_draws)
    assert abs(loss.mean() - predictive_regret(num_draws)) < 4 * error


def test_two_draws_by_quadrature():
    # S = 2: m and s of two draws are z = m + c s t_1, and s = |d| / sqrt 2 with d ~ N(0, 2).
    cauchy = -integrate.quad(lambda t: stats.cauchy.pdf(t) * stats.cauchy.logpdf(t), -np.inf, 0)[0]
    log_s = integrate.quad(lambda u: 2 * stats.norm.pdf(u) * np.log(u), 0, np.inf)[0]
    exact = 2 * cauchy + np.log(1.5) / 2 + log_s - stats.norm.entropy()
    assert predictive_regret(2) == pytest.approx(exact, abs=1e-7)


def test_it_vanishes_like_one_over_the_draws():
    for num_draws in (1000, 100_000):
        assert predictive_regret(num_draws) * num_draws == pytest.approx(1.0, abs=10 / num_draws)


@pytest.mark.parametrize("num_draws", [1, 2.0, True])
def test_one_draw_has_no_variance(num_draws):
    with pytest.raises(ValueError, match="`num_draws` must be an integer of at least 2"):
        predictive_regret(num_draws)


def test_default_draws_are_many_in_all_and_enough_for_each():
    assert [default_moment_draws(n) for n in (0, 1, 4, 32, 128, 10_000)] == [
        *(1024, 1024, 1024),
        *(128, 32, 32),
    ]
    assert [default_critic_draws(n) for n in (0, 1, 32, 128, 10_000)] == [128, 128, 4, 1, 1]
