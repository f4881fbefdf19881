# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Discrete channels: known numbers and exact identities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spread_analysis import reference as ref

CIRCULANT = np.array([np.roll([0.25, 0.5, 0.25, 0.0], k) for k in range(4)]).T


def test_known_numbers():
    matrix, one, other = ref.symmetric_channel(5, 0.3), np.eye(5)[0], np.eye(5)[3]
    np.testing.assert_allclose(ref.channel_kl(one, other, matrix), 1.7772817, atol=5e-8)
    np.testing.assert_allclose(ref.channel_js(one, other, matrix), 0.3537338, atol=5e-8)
    np.testing.assert_allclose(ref.channel_total_variation(one, other, matrix), 0.7, rtol=1e-14)
    flip = [[0.9, 0.1], [0.1, 0.9]]
    np.testing.assert_allclose(ref.channel_kl([1, 0], [0, 1], flip), 1.7577797, atol=5e-8)
    np.testing.assert_allclose(ref.symmetric_channel(2, 0.2), flip)


@settings(deadline=None)
@given(size=st.integers(2, 30), flip=st.floats(1e-6, 0.999))
def test_closed_form_of_two_symbols(size, flip):
    matrix = ref.symmetric_channel(size, flip)
    actual = ref.channel_kl(np.eye(size)[0], np.eye(size)[1], matrix)
    # Near flip = 1 the KL is a difference of nearly equal sums of size 1.
    np.testing.assert_allclose(
        actual, ref.symmetric_channel_deltas_kl(size, flip), rtol=1e-9, atol=1e-14
    )


@settings(deadline=None)
@given(size=st.integers(2, 12), flip=st.floats(0, 0.999), seed=st.integers(0, 1000))
def test_identities_on_any_pair(size, flip, seed):
    p, q = np.random.default_rng(seed).dirichlet(np.ones(size), 2)
    matrix = ref.symmetric_channel(size, flip)
    np.testing.assert_allclose(matrix.sum(0), 1.0, rtol=1e-13)
    clean = ref.channel_total_variation(p, q, np.eye(size))
    np.testing.assert_allclose(
        ref.channel_total_variation(p, q, matrix), (1 - flip) * clean, rtol=1e-9, atol=1e-15
    )
    # Data processing: noise never adds information.
    assert ref.channel_kl(p, q, matrix) <= ref.channel_kl(p, q, np.eye(size)) + 1e-12
    js, swapped = ref.channel_js(p, q, matrix, 0.2), ref.channel_js(q, p, matrix, 0.8)
    np.testing.assert_allclose(js, swapped, rtol=1e-9, atol=1e-15)


def test_identity_channel_is_infinite_on_disjoint_support():
    assert ref.channel_kl([1.0, 0.0], [0.0, 1.0], np.eye(2)) == np.inf
    entropy = -0.3 * np.log(0.3) - 0.7 * np.log(0.7)
    np.testing.assert_allclose(ref.channel_js([1, 0], [0, 1], np.eye(2), 0.3), entropy)


def test_a_singular_channel_does_not_separate():
    # Column-stochastic and without a zero column, yet two different inputs give the same output.
    p, q = np.array([0.5, 0.0, 0.5, 0.0]), np.array([0.0, 0.5, 0.0, 0.5])
    assert abs(np.linalg.det(CIRCULANT)) < 1e-15
    assert ref.channel_kl(p, q, CIRCULANT) == 0.0


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"`flip` must lie in \[0, 1\), got 1"):
        ref.symmetric_channel(3, 1.0)
    with pytest.raises(ValueError, match="`num_classes` must be an integer of at least 2, got 1"):
        ref.symmetric_channel(1, 0.1)
    with pytest.raises(ValueError, match="`matrix` must be column-stochastic"):
        ref.channel_kl([1, 0], [0, 1], [[0.9, 0.1], [0.2, 0.8]])
    with pytest.raises(ValueError, match=r"`matrix` must be square, got shape \(1, 2\)"):
        ref.channel_kl([1, 0], [0, 1], [[0.9, 0.1]])
    with pytest.raises(ValueError, match="`q` must be probabilities"):
        ref.channel_js([1, 0], [0, 2], np.eye(2))
