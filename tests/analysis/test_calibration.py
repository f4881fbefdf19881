# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Ranks of truths among draws, their test and their picture."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

import spread_analysis as sa
from spread_analysis.ranks import simulation_ranks


def conjugate_report(shift=0.0, width=1.0, num=2000, num_draws=50, seed=0):
    """z ~ N(0, 1), x | z ~ N(z, 1) with a guide off by a shift and a width, in posterior sds."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(num)
    mean, sd = sa.reference.conjugate_posterior(1.0, z + rng.standard_normal(num))
    draws = mean + sd * (shift + width * rng.standard_normal((num_draws, num)))
    return sa.CalibrationReport({"z": simulation_ranks(z, draws)}, num_draws)


def test_ranks_by_hand_and_ties_at_random():
    ranks = simulation_ranks([[0.5], [9.0]], np.array([0.0, 1.0, 0.2])[:, None, None] * [[1], [0]])
    np.testing.assert_array_equal(ranks, [[2], [3]])
    ties = simulation_ranks(np.zeros(30_000), np.zeros((2, 30_000)), seed=1)
    np.testing.assert_allclose(np.bincount(ties) / 30_000, 1 / 3, atol=0.015)


def test_ranks_of_arrays_of_any_posterior():
    rng = np.random.default_rng(0)
    truths = {"a": rng.standard_normal(400), "b": rng.integers(0, 3, (400, 2))}
    draws = {"a": rng.standard_normal((19, 400)), "b": rng.integers(0, 3, (19, 400, 2))}
    report = sa.CalibrationReport.from_draws(truths, draws)
    assert report.num_draws == 19
    assert {site: ranks.shape for site, ranks in report.ranks.items()} == {
        "a": (400,),
        "b": (400, 2),
    }
    np.testing.assert_array_equal(report.ranks["a"], (draws["a"] < truths["a"]).sum(0))
    assert report.p_value() > 0.01
    kept = {"b": rng.uniform(size=(400, 1)) < 0.5}
    masked = sa.CalibrationReport.from_draws(
        truths | {"b": np.where(kept["b"], truths["b"], np.nan)}, draws, kept
    )
    np.testing.assert_array_equal(masked.ranks["a"], report.ranks["a"])
    np.testing.assert_array_equal(masked.ranks["b"].mask, np.broadcast_to(~kept["b"], (400, 2)))
    assert masked.p_value() > 0.01


def test_moments_of_ranks_say_what_is_wrong():
    mean, deviation = conjugate_report(num=20_000).moments("z")
    assert (mean, deviation) == (pytest.approx(0.5, abs=0.01), pytest.approx(1.0, abs=0.02))
    assert conjugate_report(width=0.7).moments("z")[1] > 1.1
    assert conjugate_report(width=1.4).moments("z")[1] < 0.9
    assert conjugate_report(shift=0.5).moments("z")[0] < 0.4


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_posterior_has_uniform_ranks(seed):
    assert conjugate_report(seed=seed).p_value() > 0.005


def test_p_values_are_uniform_themselves():
    # 101 ranks into 20 bins: unequal bins must expect unequal counts.
    rng = np.random.default_rng(3)
    report = sa.CalibrationReport({"z": rng.integers(0, 101, (5000, 300))}, 100)
    values = report.p_values()["z"]
    assert values.shape == (300,)
    assert stats.kstest(values, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("shift", "width"), [(0.0, 0.7), (0.0, 1.5), (0.3, 1.0)])
def test_wrong_guides_are_caught(shift, width):
    assert conjugate_report(shift, width).p_value() < 1e-6


def test_the_shape_of_the_histogram_says_what_is_wrong():
    narrow, _ = conjugate_report(width=0.6).histogram("z", num_bins=10)
    assert min(narrow[0], narrow[-1]) > 1.5 * max(narrow[4:6])
    wide, _ = conjugate_report(width=2.0).histogram("z", num_bins=10)
    assert max(wide[0], wide[-1]) < 0.6 * min(wide[4:6])
    high, expected = conjugate_report(shift=1.0).histogram("z", num_bins=10)
    assert high[0] > 3 * high[-1]  # draws too high: truths rank low
    np.testing.assert_allclose(expected, 2000 * np.array([6, *[5] * 9]) / 51)


def test_all_components_are_tested_and_paid_for():
    rng = np.random.default_rng(0)
    good = rng.integers(0, 51, (1000, 2, 3))
    bad = good.copy()
    bad[:, 1, 2] = rng.integers(0, 40, 1000)
    report = sa.CalibrationReport({"a": good, "b": bad, "c": good[:, 0, 0]}, 50)
    values = report.p_values()
    assert values["a"].shape == (2, 3)
    assert values["c"].shape == ()
    assert report.p_value() == pytest.approx(13 * values["b"][1, 2])
    assert report.p_value() < 1e-6
    assert sa.CalibrationReport({"a": good}, 50).p_value() > 0.01
    lines = str(report).splitlines()
    assert lines[-2].startswith("c ")
    assert lines[11].split()[:2] == ["b[1,", "2]"]
    assert lines[-1].endswith("1000 simulations")
    assert len(lines) == 14


def test_the_plot_shows_counts_and_the_binomial_band():
    report = conjugate_report(num_draws=49)
    axes = sa.plot_sbc(report, "z", num_bins=10)
    counts, expected = report.histogram("z", num_bins=10)
    assert [bar.get_height() for bar in axes.patches] == list(counts)
    assert axes.get_title() == f"z: p = {float(report.p_values(10)['z']):.2g}"
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    low, high = stats.binom.interval(0.99, 2000, 0.1)
    assert set(band) == {low, high}
    assert low < counts.min() <= expected[0] <= counts.max() < high
    given = Figure().add_subplot()
    assert sa.plot_sbc(report, "z", title="mine", level=0.5, ax=given) is given
    assert given.get_title() == "mine"
    axes.figure.canvas.draw()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulation_ranks(np.zeros(2), np.zeros((5, 3))), r"shape \(num_draws, 2\), got"),
        (lambda: simulation_ranks([np.nan], [[0.0]]), "must not hold NaN, which has no rank"),
        (lambda: sa.CalibrationReport({"z": np.zeros(3)}, 5), "ranks of 'z' must be integers"),
        (
            lambda: sa.CalibrationReport({"z": np.array([6])}, 5),
            r"ranks of 'z' must lie in 0, \.\.\., num_draws = 5, got 6 to 6",
        ),
        (lambda: sa.CalibrationReport({}, 0), "`num_draws` must be an integer of at least 1"),
        (lambda: conjugate_report().histogram("w"), "no ranks of site 'w'; there are \\['z'\\]"),
        (lambda: conjugate_report().histogram("z", (0,)), r"one component of shape \(\), got"),
        (lambda: conjugate_report().p_values(1), "`num_bins` must be an integer of at least 2"),
        (
            lambda: conjugate_report().p_values(52),
            r"`num_bins` must be at most num_draws \+ 1 = 51",
        ),
        (
            lambda: sa.CalibrationReport.from_draws({"z": [0.0]}, {"w": [[0.0]]}),
            r"`truths` and `draws` must hold the same sites, .* got \['z'\] and \['w'\]",
        ),
        (lambda: sa.CalibrationReport.from_draws({}, {}), "at least one, got"),
        (
            lambda: sa.CalibrationReport.from_draws({"z": [0.0]}, {"z": [[0.0, 1.0]]}),
            r"site 'z': `draws` must have shape \(num_draws, 1\), got \(1, 2\)",
        ),
        (
            lambda: sa.CalibrationReport.from_draws({"z": [np.nan]}, {"z": [[0.0]]}),
            "site 'z': `truth` and `draws` must not hold NaN",
        ),
        (
            lambda: sa.CalibrationReport.from_draws(
                {"z": [0.0], "w": [0.0]}, {"z": [[0.0]], "w": [[0.0], [1.0]]}
            ),
            r"`draws` must hold equally many draws of every site, got \[1, 2\]",
        ),
        (
            lambda: sa.CalibrationReport.from_draws({"z": [0.0]}, {"z": [[0.0]]}, {"z": [False]}),
            "site 'z' is masked in all 1 simulations, so that there is nothing to rank",
        ),
        (lambda: sa.plot_sbc(conjugate_report(), "z", level=1.0), "`level` must lie strictly"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_plot_names_a_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"`spread_analysis\.plot_sbc` needs matplotlib"):
        sa.plot_sbc(conjugate_report(), "z")
