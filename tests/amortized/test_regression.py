# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Where conditionals start: regressions of latents on the data, by as many rows as there are."""

import numpy as np
import pytest

from spread_core.amortized.mixture import FAR
from spread_core.amortized.regression import start

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40_000, 2))
FEATURES = np.concatenate([X, X**2 - 1], 1)
NOISE = RNG.normal(size=40_000)
T = (0.6 * X[:, 0] + np.exp(0.3 * X[:, 1] - 1) * NOISE).astype("float32")[:, None]


def coefficients(ends=(-FAR, FAR), **options):
    latents = np.concatenate([T, T**2], 1)
    ends = np.array(ends)[:, None]
    return start(T, FEATURES, latents, np.arange(4) < 2, ends, **options)[0]


@pytest.mark.parametrize("ends", [(-FAR, FAR), (-10.0, 10.0)])
def test_the_form_is_chosen_by_some_rows_and_fitted_to_all(ends):
    whole = coefficients(ends, most_rows=40_000)
    # The truth is among the forms; errors are those of 40,000 rows.
    np.testing.assert_allclose(whole[:2], [[0.6, 0.0], [0.0, 0.3]], atol=0.015)
    assert whole[-1, 1] == pytest.approx(-1.0, abs=0.015)
    polished = coefficients(ends, most_rows=2000)
    few = coefficients(ends, most_rows=2000, most_in_all=2000)
    np.testing.assert_allclose(polished[[0, 1, -1]], whole[[0, 1, -1]], atol=2e-3)
    assert np.abs(few[[0, 1, -1]] - whole[[0, 1, -1]]).max() > 4e-3


def test_latents_after_it_are_not_seen():
    assert not coefficients()[4:6].any()
