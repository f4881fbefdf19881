# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""All checks of a posterior at once: its rate of false alarms, its power, what it says."""

import sys
import warnings

import numpy as np
import pytest
from known_posteriors import WRONG, case
from scipy import stats

import spread_analysis as sa


def check(wrong=None, num=1000, num_draws=49, seed=0, density=True, **options):
    found = case(wrong, num, num_draws, seed)
    if density:
        options |= {"log_prob_truth": found.log_prob_truth, "log_prob_draws": found.log_prob_draws}
    split = [{"a": values[..., 0], "b": values[..., 1:]} for values in (found.truths, found.draws)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.CalibrationWarning)
        return sa.check_posterior(*split, {"x": found.data}, seed=seed, **options)


def test_an_exact_posterior_fails_at_most_at_the_stated_rate():
    failed = sum(
        not check(num=200, num_draws=19, seed=seed, density=False, level=0.05).passed
        for seed in range(200)
    )
    assert failed <= stats.binom.ppf(0.999, 200, 0.05)
    assert failed > 0


@pytest.mark.parametrize("density", [True, False])
@pytest.mark.parametrize("wrong", WRONG)
def test_every_wrong_posterior_fails(wrong, density):
    found = check(wrong, density=density)
    assert not found.passed
    assert found.p_value() < 1e-3


def test_what_it_holds():
    found = check()
    assert list(found.p_values()) == ["sbc", "coverage", "tarp", "joint"]
    assert found.p_value() == min(1.0, 4 * min(found.p_values().values()))
    assert found.passed
    assert found.failures() == []
    assert found.num_simulations == 1000
    assert found.calibration.ranks["b"].shape == (1000, 2)
    assert found.told_from_prior > 0.7
    assert "do not tell the draws from the posterior" in found.advice()
    assert repr(found).startswith("PosteriorCheck(sbc=")
    assert "passed=True" in repr(found)
    assert repr(found) == repr(check())
    assert str(found) == str(check())


def test_without_data_and_densities_there_are_two_tests():
    found = case("ignores x")
    result = sa.check_posterior({"z": found.truths}, {"z": found.draws})
    assert list(result.p_values()) == ["sbc", "tarp"]
    assert result.passed  # as documented
    assert result.told_from_prior is None
    assert "told from the prior" not in str(result)
    assert len(result.plot().axes) == 2


def test_holm_pays_for_what_is_left():
    found = check("ignores x", density=False)
    assert found.failures() == ["joint", "tarp"]
    values = sorted(found.p_values().values())
    strict = {"level": values[1] * 2 * 1.001}
    assert check("ignores x", density=False, **strict).failures() == ["joint", "tarp"]
    strict = {"level": values[1] * 2 * 0.999}
    assert check("ignores x", density=False, **strict).failures() == ["joint"]


def test_the_table_can_be_read():
    lines = str(check("narrow")).splitlines()
    assert lines[0] == "1000 simulations, 49 draws of the posterior for each"
    assert [line[:12] for line in lines[1:5]] == [
        "ranks of eac",
        "expected cov",
        "balls round ",
        "classifier, ",
    ]
    assert lines[1].endswith(": draws too narrow")
    assert "least uniform " in lines[1]
    assert " failed: " in lines[5]
    assert lines[5].endswith(" at level 0.01")
    assert lines[6].endswith(" % of pairs (50 %: nothing was learnt)")
    assert ": draws too wide" in str(check("wide"))
    assert ": draws too high" in str(check("biased"))


def test_a_failure_is_warned_of_and_says_what_to_do():
    found = case("ignores x")
    with pytest.warns(sa.CalibrationWarning, match="fails its check on 1000 held-out") as caught:
        result = sa.check_posterior({"z": found.truths}, {"z": found.draws}, found.data)
    (text,) = [str(w.message) for w in caught]
    assert caught[0].filename == __file__
    assert text == result.advice()
    assert "tells the truth from a draw in 8" in text
    assert "the guide ignores the data" in text
    assert "Simulate more, train longer or use a more flexible density" in text
    assert "'The posterior fails its check' of the page 'When it does not train'" in text
    assert "ignores the data" not in check("narrow").advice()


def test_nothing_is_learnt_from_data_that_say_nothing():
    rng = np.random.default_rng(0)
    truths, x = rng.standard_normal((2, 1000, 1))
    draws = rng.standard_normal((19, 1000, 1))
    result = sa.check_posterior({"z": truths}, {"z": draws}, x)
    assert result.passed  # the prior is the posterior
    assert abs(result.told_from_prior - 0.5) < 0.05
    found = case()
    assert sa.c2st_prior(found.truths, found.draws, found.data) > 0.7


def test_masked_elements_do_not_count():
    found = case()
    rng = np.random.default_rng(1)
    kept = rng.uniform(size=found.truths.shape) < 0.7
    truths, draws = found.truths.copy(), found.draws.copy()
    truths[~kept] = np.nan
    draws[:, ~kept] = 1e9
    result = sa.check_posterior({"z": truths}, {"z": draws}, found.data, kept={"z": kept})
    assert result.p_value() > 0.01
    assert result.calibration.ranks["z"].mask.sum() == (~kept).sum()


def test_many_latents_at_once():
    rng = np.random.default_rng(0)
    truths = rng.standard_normal((1000, 30))
    x = truths + rng.standard_normal((1000, 30))
    draws = x / 2 + 0.5**0.5 * rng.standard_normal((19, 1000, 30))
    assert sa.check_posterior({"z": truths}, {"z": draws}, x).passed
    draws[..., 17] = rng.standard_normal((19, 1000))
    with pytest.warns(sa.CalibrationWarning, match="fails"):
        assert not sa.check_posterior({"z": truths}, {"z": draws}, x).passed


def test_the_picture_shows_ranks_and_curves():
    figure = check("one latent narrow").plot()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith("a: p = ")
    assert [title.split(": p = ")[0] for title in titles[3:]] == [
        "highest density",
        "balls round points (TARP)",
        "regions of a classifier",
    ]
    figure.canvas.draw()


GOOD = case(num=100, num_draws=9)
Z, DRAWS = {"z": GOOD.truths}, {"z": GOOD.draws}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sa.check_posterior(Z, {"w": GOOD.draws}), "must hold the same sites"),
        (
            lambda: sa.check_posterior(
                {"a": np.zeros(3), "b": np.zeros(2)},
                {"a": np.zeros((9, 3)), "b": np.zeros((9, 2))},
            ),
            r"`truths` must hold equally many simulations of every site, got \[2, 3\]",
        ),
        (lambda: sa.check_posterior(Z, DRAWS, level=0.0), "`level` must lie strictly"),
        (lambda: sa.check_posterior(Z, DRAWS, {}), "`data` must hold at least one site"),
        (
            lambda: sa.check_posterior(Z, DRAWS, {"x": GOOD.data, "y": GOOD.data[:5]}),
            r"`y` must have one row for each of 100 simulations, got shape \(5, 4\)",
        ),
        (
            lambda: sa.check_posterior(Z, DRAWS, GOOD.data[:5]),
            r"`data` must have one row for each of 100 simulations, got shape \(5, 4\)",
        ),
        (
            lambda: sa.check_posterior(Z, DRAWS, log_prob_truth=GOOD.log_prob_truth),
            "give `log_prob_truth` and `log_prob_draws` both, or neither",
        ),
        (
            lambda: sa.check_posterior(
                Z, DRAWS, log_prob_truth=np.zeros(5), log_prob_draws=np.zeros((9, 5))
            ),
            r"`log_prob_truth` must have one row for each of 100 simulations, got shape \(5,\)",
        ),
        (
            lambda: sa.joint_c2st(
                GOOD.truths, GOOD.draws, GOOD.data, log_prob_truth=GOOD.log_prob_truth
            ),
            "give `log_prob_truth` and `log_prob_draws` both, or neither",
        ),
        (
            lambda: sa.joint_c2st(
                GOOD.truths,
                GOOD.draws,
                GOOD.data,
                log_prob_truth=GOOD.log_prob_truth,
                log_prob_draws=np.zeros((9, 5)),
            ),
            r"`log_prob_draws` must have shape \(num_draws, 100\), got \(9, 5\)",
        ),
        (
            lambda: sa.joint_c2st(
                GOOD.truths,
                GOOD.draws,
                GOOD.data,
                log_prob_truth=np.zeros(5),
                log_prob_draws=np.zeros((9, 5)),
            ),
            r"`log_prob_truth` must have shape \(num_simulations,\), got \(5,\)",
        ),
        (
            lambda: sa.joint_c2st(
                GOOD.truths,
                GOOD.draws,
                GOOD.data,
                log_prob_truth=GOOD.log_prob_truth,
                log_prob_draws=np.full((9, 100), np.nan),
            ),
            "`log_prob_draws` must not hold NaN, but 900",
        ),
        (
            lambda: sa.joint_c2st(GOOD.truths, GOOD.draws[:8], GOOD.data),
            "`draws` must hold at least 9 draws for each simulation.*got 8. Draw more",
        ),
        (
            lambda: sa.joint_c2st(GOOD.truths[:, 0], GOOD.draws[..., 0], GOOD.data),
            r"`truths` must have shape \(num_simulations, dim\), got \(100,\)",
        ),
        (
            lambda: sa.joint_c2st(GOOD.truths, GOOD.draws * np.nan, GOOD.data),
            "`draws` must be finite, but 2700 of its entries are not",
        ),
        (
            lambda: sa.joint_c2st(GOOD.truths[:30], GOOD.draws[:, :30], GOOD.data[:30]),
            "30 simulations are too few for this check.*needs at least 40",
        ),
        (
            lambda: sa.c2st_prior(GOOD.truths[:70], GOOD.draws[:, :70], GOOD.data[:70]),
            "70 simulations are too few for this check.*needs at least 80",
        ),
        (lambda: check().plot(level=2.0), "`level` must lie strictly"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_plot_names_a_missing_extra(monkeypatch):
    found = check()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"`spread_analysis\.PosteriorCheck\.plot` needs matplo"):
        found.plot()
