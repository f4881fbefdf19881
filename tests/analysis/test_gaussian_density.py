# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The Gaussian of an adaptive contrast, with a full covariance, against SciPy."""

import numpy as np
import pytest
from scipy import stats

from spread_core.math.gaussian_density import GaussianDensity

RNG = np.random.default_rng(0)
LOC, VALUE = RNG.normal(size=(2, 4, 3))
FACTORS = np.tril(RNG.normal(size=(4, 3, 3)), -1) + np.eye(3) * [0.3, 1.0, 2.0]


def around(scale=FACTORS):
    return GaussianDensity.around(LOC, scale, 1)


def test_log_density():
    # What is above the diagonal does not count.
    contrast = around(FACTORS + np.triu(np.ones((3, 3)), 1))
    expected = [
        stats.multivariate_normal(loc, factor @ factor.T).logpdf(value)
        for loc, factor, value in zip(LOC, FACTORS, VALUE, strict=True)
    ]
    np.testing.assert_allclose(contrast.log_prob(VALUE), expected)
    many = np.stack([VALUE, VALUE + 1])
    np.testing.assert_allclose(contrast.log_prob(many)[0], expected)


def test_what_the_critic_sees_is_standardised():
    seen = around().standardise(VALUE)
    np.testing.assert_allclose((FACTORS @ seen[..., None])[..., 0] + LOC, VALUE)


def test_one_factor_for_all_data_and_a_scale():
    one = around(FACTORS[:1])
    each = around(np.broadcast_to(FACTORS[0], FACTORS.shape))
    np.testing.assert_allclose(one.log_prob(VALUE), each.log_prob(VALUE))
    diagonal = around(np.eye(3)[None] * 0.4)
    np.testing.assert_allclose(diagonal.log_prob(VALUE), around(np.asarray(0.4)).log_prob(VALUE))


def test_what_does_not_count_is_standard():
    counts = np.array([True, False, True, False])[:, None]
    contrast = around().where(counts)
    np.testing.assert_allclose(contrast.standardise(VALUE)[1], VALUE[1])
    np.testing.assert_allclose(contrast.log_prob(VALUE)[::2], around().log_prob(VALUE)[::2])


def test_factors_of_matrices_are_refused():
    with pytest.raises(ValueError, match="of events of one dimension"):
        GaussianDensity.around(LOC, FACTORS, 0)
