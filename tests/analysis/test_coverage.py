# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Coverage of regions of a posterior: silent on an exact one at its rate, not on wrong ones."""

import sys

import numpy as np
import pytest
from known_posteriors import COVARIANCE, LOADING, WRONG, case
from matplotlib.figure import Figure
from scipy import stats

import spread_analysis as sa

REPETITIONS = 200


def density(found, seed=0):
    return sa.expected_coverage(found.log_prob_truth, found.log_prob_draws, seed)


def balls(found, seed=0):
    return sa.tarp(found.truths, found.draws, seed=seed)


def balls_that_follow(found, seed=0):
    return sa.tarp(found.truths, found.draws, data=found.data, seed=seed)


def classifier(found, seed=0):
    return sa.joint_c2st(found.truths, found.draws, found.data, seed=seed)


def discrete(found):
    """The same, with latents and densities of a few values each."""
    return found._replace(
        truths=np.round(found.truths),
        draws=np.round(found.draws),
        log_prob_truth=np.round(found.log_prob_truth),
        log_prob_draws=np.round(found.log_prob_draws),
    )


CHECKS = [density, balls, balls_that_follow, classifier]


@pytest.mark.parametrize("change", [lambda found: found, discrete], ids=["continuous", "discrete"])
@pytest.mark.parametrize("check", CHECKS)
def test_an_exact_posterior_is_rejected_at_the_stated_rate(check, change):
    p = []
    for seed in range(REPETITIONS):
        found = case(num=200, num_draws=19, seed=seed)
        if check is density:  # of the exact density, not of a fit to the same draws
            found = exact_density(found)
        p.append(check(change(found), seed).p_value())
    for level in (0.05, 0.25):
        low, high = stats.binom.interval(0.999, REPETITIONS, level)
        assert low <= np.sum(np.array(p) < level) <= high
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def exact_density(found):
    mean = found.data @ LOADING.T @ COVARIANCE
    precision = np.linalg.inv(COVARIANCE)

    def log_prob(theta):
        return -0.5 * np.einsum("...i,ij,...j->...", theta - mean, precision, theta - mean)

    return found._replace(
        log_prob_truth=log_prob(found.truths), log_prob_draws=log_prob(found.draws)
    )


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        *[(density, wrong) for wrong in ("narrow", "wide", "one latent narrow")],
        *[(balls, wrong) for wrong in ("narrow", "wide")],
        *[(balls_that_follow, wrong) for wrong in ("narrow", "wide", "ignores x")],
        *[(classifier, wrong) for wrong in WRONG],
    ],
)
def test_wrong_posteriors_are_found(check, wrong):
    assert check(case(wrong)).p_value() < 1e-3


def test_what_a_check_does_not_see_is_as_documented():
    found = case("ignores x")
    assert balls(found).p_value() > 0.01
    log_prob = (-0.5 * np.square(values).sum(-1) for values in (found.truths, found.draws))
    assert sa.expected_coverage(*log_prob).p_value() > 0.01
    report = sa.CalibrationReport.from_draws({"z": found.truths}, {"z": found.draws})
    assert report.p_value() > 0.01


def test_coverage_by_hand():
    report = sa.expected_coverage([-1.0, -9.0, -np.inf], [[0.0, 0.0, 0.0], [-2.0, -2.0, -2.0]])
    assert report.ranks.tolist() == [1, 2, 2]
    assert report.num_draws == 2
    assert report.accuracy == pytest.approx(1 - 5 / 6)
    low, high = report.ranks / 3, (report.ranks + 1) / 3
    assert ((low < report.credibilities) & (report.credibilities < high)).all()
    np.testing.assert_array_equal(report.coverage([0.0, 1 / 3, 2 / 3, 1.0]), [0, 0, 1 / 3, 1])


def test_too_narrow_a_posterior_covers_too_little_and_says_so():
    report = density(case("narrow"))
    assert report.coverage(0.5) < 0.4
    assert report.coverage(0.9) < 0.8
    assert report.accuracy < 0.45
    percent = f"{100 * report.coverage(0.9):.0f} %"
    assert f"{percent} of 1000 truths, p = " in str(report)
    assert str(report).startswith("highest density: regions of 50 % and 90 % hold ")


def test_balls_hold_what_is_nearer_than_the_truth():
    truths, draws = np.array([[1.0], [5.0]]), np.array([[[2.0], [2.0]], [[0.5], [6.0]]])
    report = sa.tarp(truths, draws, references=[[0.0], [0.0]])
    assert report.ranks.tolist() == [1, 1]
    report = sa.tarp(truths, draws, references=[[9.0], [9.0]])
    assert report.ranks.tolist() == [1, 1]
    assert sa.tarp(truths, draws, references=[[2.0], [6.0]]).ranks.tolist() == [1, 1]


def test_equal_latents_are_ties_whatever_the_rounding_errors():
    rng = np.random.default_rng(0)
    truths, x = np.ones((400, 2)) / 3, rng.standard_normal((400, 2))
    report = sa.joint_c2st(truths, np.ones((19, 400, 2)) / 3, x)
    assert report.p_value() > 0.01
    binary = rng.integers(0, 2, (4000, 3)) / 3
    report = sa.joint_c2st(binary, rng.integers(0, 2, (19, 4000, 3)) / 3, x.repeat(10, 0))
    assert report.p_value() > 0.01


def test_units_do_not_matter():
    found = case()
    scale = np.array([1.0, 1e6, 1e-6])
    for data in (None, found.data):
        one = sa.tarp(found.truths, found.draws, data=data)
        other = sa.tarp(scale * found.truths, scale * found.draws, data=data)
        assert np.mean(one.ranks == other.ranks) > 0.99


def test_the_same_seed_gives_the_same_and_data_are_held_out():
    found = case()
    for check in CHECKS:
        assert check(found, 3).p_value() == check(found, 3).p_value()
    assert balls(found, 3).p_value() != balls(found, 4).p_value()
    assert [len(check(found).ranks) for check in CHECKS] == [1000, 1000, 800, 500]


def test_constant_latents_and_columns_are_no_obstacle():
    found = case()
    truths = np.concatenate([found.truths, np.ones((1000, 1))], 1)
    draws = np.concatenate([found.draws, np.ones((49, 1000, 1))], 2)
    data = np.concatenate([found.data, np.ones((1000, 1))], 1)
    for data_or_none in (None, data):
        assert sa.tarp(truths, draws, data=data_or_none).p_value() > 0.001
    assert sa.joint_c2st(truths, draws, data).p_value() > 0.001


def test_the_curve_leaves_its_band_where_the_test_rejects():
    report = density(case(num=300))
    for shift, leaves in ((-1e-6, True), (1e-6, False)):
        axes = sa.plot_coverage(report, level=1 - report.p_value() + shift)
        levels, shares = axes.lines[1].get_data()
        band = axes.collections[0].get_paths()[0].vertices
        width = band[:, 1].max() - 1.0
        gaps = [np.abs(side - levels[1:-1]).max() for side in (shares[1:-1], shares[:-2])]
        assert (max(gaps) > width) == leaves
    assert axes.get_title() == f"highest density: p = {report.p_value():.2g}"
    given = Figure().add_subplot()
    assert sa.plot_coverage(report, title="mine", ax=given) is given
    assert given.get_title() == "mine"
    given.figure.canvas.draw()


def ranks(values, num_draws=5):
    return sa.CoverageReport(np.asarray(values), num_draws)


GOOD = case(num=50, num_draws=9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ranks([0.5]),
            r"`ranks` must be integers of shape \(num_simulations,\), got float",
        ),
        (lambda: ranks([[1]]), r"got int64 of shape \(1, 1\)"),
        (lambda: ranks([6]), r"`ranks` must lie in 0, \.\.\., num_draws = 5, got 6 to 6"),
        (lambda: ranks([0], 0), "`num_draws` must be an integer of at least 1"),
        (
            lambda: sa.expected_coverage(np.zeros(3), np.zeros((5, 2))),
            r"`log_prob_draws` must have shape \(num_draws, 3\), got \(5, 2\)",
        ),
        (
            lambda: sa.expected_coverage(np.zeros((3, 2)), np.zeros((5, 3, 2))),
            r"`log_prob_truth` must have shape \(num_simulations,\), got \(3, 2\): sum over sites",
        ),
        (
            lambda: sa.expected_coverage([0.0, np.nan], np.zeros((5, 2))),
            "`log_prob_truth` must not hold NaN, but 1 of its entries are",
        ),
        (
            lambda: sa.expected_coverage([0.0], [[np.nan]]),
            "`log_prob_draws` must not hold NaN, but 1",
        ),
        (
            lambda: sa.tarp(np.zeros((5, 2)), np.zeros((3, 5, 1))),
            r"`draws` must have shape \(num_draws, 5, 2\), got \(3, 5, 1\)",
        ),
        (
            lambda: sa.tarp(np.zeros(5), np.zeros((3, 5))),
            r"`truths` must have shape \(num_simulations, dim\), got \(5,\).*side by side",
        ),
        (
            lambda: sa.tarp([[np.nan]], [[[0.0]]]),
            "`truths` must be finite, but 1 of its entries are not. Leave failed simulations out",
        ),
        (lambda: sa.tarp([[0.0]], [[[np.inf]]]), "`draws` must be finite, but 1"),
        (
            lambda: sa.tarp(GOOD.truths, GOOD.draws, GOOD.truths, data=GOOD.data),
            "tarp: give `references`, or `data` for references that follow them, not both",
        ),
        (
            lambda: sa.tarp(GOOD.truths, GOOD.draws, GOOD.truths[:, :1]),
            r"`references` must have the shape \(50, 3\) of `truths`, got \(50, 1\)",
        ),
        (
            lambda: sa.tarp(GOOD.truths, GOOD.draws, data=GOOD.data[:9]),
            r"`data` must have one row for each of 50 simulations, got shape \(9, 4\)",
        ),
        (
            lambda: sa.tarp(GOOD.truths, GOOD.draws, data=np.full(50, np.inf)),
            "`data` must be finite, but 50 of its entries are not",
        ),
        (
            lambda: sa.tarp(GOOD.truths[:9], GOOD.draws[:, :9], data=GOOD.data[:9]),
            "9 simulations are too few for this check.*needs at least 20. Simulate more",
        ),
        (lambda: sa.plot_coverage(density(GOOD), level=1.0), "`level` must lie strictly"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_plot_names_a_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"`spread_analysis\.plot_coverage` needs matplotlib"):
        sa.plot_coverage(density(GOOD))
