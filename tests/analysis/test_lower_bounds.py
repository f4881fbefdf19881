# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Where a few weights make an estimate it is a lower bound, and has no error bar."""

from dataclasses import replace

import numpy as np

import spread_analysis as sa

RNG = np.random.default_rng(0)


def test_many_effective_samples_have_an_error_bar():
    evidence = sa.log_mean_exp(0.1 * RNG.normal(size=(16, 3)))
    assert not evidence.is_lower_bound.any()
    assert " ± " in str(evidence)
    assert " ± " in repr(evidence)
    assert "bound" not in str(evidence)


def test_few_effective_samples_make_a_lower_bound():
    evidence = sa.log_mean_exp(0.1 * RNG.normal(size=(16, 3)) + [[0, 0, 1]] * np.eye(16)[:, :1] * 9)
    assert evidence.is_lower_bound.tolist() == [False, False, True]
    for text in (str(evidence), repr(evidence)):
        assert "a lower bound: 1 of 3 data have fewer than 5 effective samples" in text
        assert "±" not in text
    assert str(evidence).splitlines()[0].startswith("mean log p(x)")
    alone = sa.log_mean_exp(RNG.normal(size=16) * 9)
    assert "nats, a lower bound: it has fewer than 5 effective samples" in str(alone)


def test_few_equal_weights_are_as_good_as_can_be():
    assert not sa.log_mean_exp(np.zeros((3, 2))).is_lower_bound.any()
    single = sa.log_mean_exp([[1.0, 2.0]])
    assert single.is_lower_bound.all()
    assert "1.5000  nats, a lower bound: there is a single weight" in str(single)
    assert sa.log_mean_exp([[-np.inf], [-np.inf]]).is_lower_bound.all()


def test_annealing_far_too_fast_says_so():
    def target(z):  # x = 40, x | z ~ N(z, .1²): no chain gets there in three temperatures
        z = z[..., 0]
        rest = (40.0 - z) / 0.01
        return sa.Target(-(z**2) / 2, -((40.0 - z) ** 2) / 0.02, -z[..., None], rest[..., None])

    start, pilot = RNG.normal(size=(16, 1, 1)), RNG.normal(size=(4, 1, 1))
    evidence = sa.annealed_importance(target, start, pilot, num_temperatures=3, num_leapfrog=1)
    assert evidence.is_lower_bound.all()
    assert "lower bound" in str(evidence)
    assert "±" not in str(evidence)


def test_masked_data_are_in_no_mean():
    weights = np.stack([RNG.normal(size=(16, 2)) * 0.1 - 3, np.zeros((16, 2))], -1)
    evidence = replace(sa.log_mean_exp(weights), observed=np.array([[True, False]] * 2))
    assert f"{evidence.values[:, 0].mean():.4f}" in str(evidence)
    lines = str(evidence).splitlines()
    assert lines[1].split() == ["data", "2", "and", "2", "masked", "out"]
    assert evidence.reshape((4,)).observed.tolist() == [True, False] * 2
    nothing = replace(evidence, observed=np.zeros((2, 2), bool))
    assert "all data are masked out" in str(nothing)
    assert "all data are masked out" in repr(nothing)
