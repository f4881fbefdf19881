# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Critic reports, the calibration plot and the watch for supports that do not overlap."""

import dataclasses
import sys
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import special, stats

import spread_analysis as sa
from spread_analysis import reference as ref

DATA, MODEL = [2.0, 1.0, -0.5], [-2.0, -1.0, 0.5]


def optimal_logits(pi, num=200_000, seed=0):
    """Logits of the optimal critic of N(0, 1) against N(1, 2²)."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal(num), 1 + 2 * rng.standard_normal(num)
    odds = np.log(pi / (1 - pi))
    return [stats.norm.logpdf(v) - stats.norm.logpdf(v, 1, 2) + odds for v in (x, y)]


def test_numbers_by_hand():
    report = sa.critic_report(DATA, MODEL, num_bins=2)
    assert report.accuracy == pytest.approx(2 / 3, rel=1e-15)
    entropy = np.log1p(np.exp([-2.0, -1.0, 0.5])).mean()
    np.testing.assert_allclose(report.cross_entropy, entropy, rtol=1e-14)
    np.testing.assert_allclose(report.divergence, np.log(2) - entropy, rtol=1e-13)
    low = special.expit([-2.0, -1.0, -0.5]).mean()
    np.testing.assert_allclose(report.bin_confidence, [low, 1 - low], rtol=1e-14)
    np.testing.assert_allclose(report.bin_frequency, [1 / 3, 2 / 3], rtol=1e-14)
    np.testing.assert_allclose(report.bin_weight, [0.5, 0.5], rtol=1e-14)
    np.testing.assert_allclose(report.expected_calibration_error, 1 / 3 - low, rtol=1e-13)
    weights = np.exp(MODEL)
    np.testing.assert_allclose(
        report.effective_sample_size, weights.sum() ** 2 / (3 * (weights**2).sum()), rtol=1e-13
    )
    assert report.saturated == 0.0


def test_the_prior_weighs_the_sides():
    report = sa.critic_report([1.0, -1.0, 11.0, 3.0], [-1.0, -10.0], pi=0.9)
    assert report.accuracy == pytest.approx(0.9 * 0.75 + 0.1)
    assert report.saturated == pytest.approx(0.9 / 4 + 0.1 / 2)
    expected = 0.9 * np.log1p(np.exp([-1.0, 1.0, -11.0, -3.0])).mean()
    expected += 0.1 * np.log1p(np.exp([-1.0, -10.0])).mean()
    np.testing.assert_allclose(report.cross_entropy, expected, rtol=1e-14)


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
def test_the_optimal_critic_reaches_the_divergence_and_is_calibrated(pi):
    data, model = optimal_logits(pi)
    report = sa.critic_report(data, model, pi)
    exact = ref.js_divergence_normals(0.0, 1.0, 1.0, 2.0, pi)
    terms = pi * np.logaddexp(0, -data), (1 - pi) * np.logaddexp(0, model)
    error = np.sqrt(sum(t.var() / t.size for t in terms))
    assert abs(report.divergence - exact) < 4 * error
    assert error < 0.01 * exact + 5e-4
    assert report.expected_calibration_error < 0.01
    # E_Q[w] = 1 and E_Q[w²] = 1 + chi²
    x = np.linspace(-12, 12, 20_001)
    second = np.sum(stats.norm.pdf(x) ** 2 / stats.norm.pdf(x, 1, 2)) * (x[1] - x[0])
    np.testing.assert_allclose(report.effective_sample_size, 1 / second, rtol=0.02)
    assert report.supports_overlap


def test_any_other_critic_is_below_the_optimal_one_and_badly_calibrated():
    data, model = optimal_logits(0.5)
    best = sa.critic_report(data, model)
    for change in (lambda x: 3 * x, lambda x: x + 1, lambda x: 0.3 * x):
        other = sa.critic_report(change(data), change(model))
        assert other.divergence < best.divergence - 0.01
        assert other.expected_calibration_error > 0.05
    constant = sa.critic_report(0 * data, 0 * model)
    assert constant.accuracy == pytest.approx(0.5)  # ties count half
    np.testing.assert_allclose(constant.divergence, 0.0, atol=1e-12)
    np.testing.assert_allclose(constant.effective_sample_size, 1.0, rtol=1e-12)


def test_huge_logits_stay_finite():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = sa.critic_report([1e4, 5e3], [-1e4, -5e3], pi=0.3)
        wrong = sa.critic_report([-1e4], [1e4])
    assert report.cross_entropy == 0.0
    np.testing.assert_allclose(report.divergence, ref.class_entropy(0.3), rtol=1e-14)
    assert report.effective_sample_size == pytest.approx(0.5)
    assert (report.accuracy, report.saturated) == pytest.approx((1.0, 1.0))
    assert not report.supports_overlap
    assert wrong.cross_entropy == pytest.approx(1e4)
    assert wrong.supports_overlap  # saturated, but wrong: another trouble


def test_weights_repeat_and_mask_samples():
    weighted = sa.critic_report(
        [2.0, -1.0, 9.0], [-1.0, 0.3], weights_p=[2.0, 1.0, 0.0], weights_q=[1.0, 3.0]
    )
    repeated = sa.critic_report([2.0, 2.0, -1.0], [-1.0, 0.3, 0.3, 0.3])
    for field in dataclasses.fields(weighted):
        got, expected = getattr(weighted, field.name), getattr(repeated, field.name)
        np.testing.assert_allclose(got, expected, rtol=1e-13, err_msg=field.name)
    mask = np.array([True, False])
    masked = sa.critic_report(np.ones((3, 2)), -np.ones((3, 2)), weights_p=mask)
    assert masked.accuracy == pytest.approx(1.0)
    huge = sa.critic_report(DATA, MODEL, weights_p=[1e308] * 3, weights_q=[1e-308] * 3)
    assert huge.cross_entropy == pytest.approx(sa.critic_report(DATA, MODEL).cross_entropy)


def test_empty_bins_are_nan_and_carry_no_weight():
    report = sa.critic_report([3.0], [3.0], num_bins=4)
    np.testing.assert_array_equal(np.isnan(report.bin_confidence), [True, True, True, False])
    np.testing.assert_array_equal(np.isnan(report.bin_frequency), [True, True, True, False])
    np.testing.assert_allclose(report.bin_weight, [0, 0, 0, 1])
    assert report.bin_frequency[-1] == 0.5
    assert report.expected_calibration_error == pytest.approx(special.expit(3.0) - 0.5)


def test_the_report_is_frozen_and_readable():
    report = sa.critic_report([12.0, 11.0], [-12.0, -11.0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.accuracy = 0.0
    lines = str(report).splitlines()
    assert lines[0].split() == ["accuracy", "1.0000", "pi", "=", "0.5"]
    assert lines[-1].split() == ["supports", "overlap", "no"]
    assert "of 0.6931" in lines[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([np.inf], [0.0]), "`logits_p` must be finite"),
        (([0.0], [np.nan]), "`logits_q` must be finite"),
        (([0.0], []), "`logits_q` is empty"),
        (([0.0], [0.0], 1.0), "`pi` must lie strictly between"),
        (([0.0], [0.0], 0.5, 0), "`num_bins` must be an integer"),
        (
            ([0.0, 1.0], [0.0], 0.5, 10, [1.0, 1.0, 1.0]),
            r"`weights_p` of shape \(3,\) does not broadcast to the shape \(2,\) of `logits_p`",
        ),
        (([0.0], [0.0], 0.5, 10, None, [-1.0]), "`weights_q` must be nonnegative"),
        (([0.0], [0.0], 0.5, 10, None, [0.0]), "at least one positive entry"),
        (([0.0], [0.0], 0.5, 10, [np.nan]), "`weights_p` must be finite"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sa.critic_report(*arguments)


def test_the_monitor_warns_once_after_patience_steps_in_a_row():
    monitor = sa.SupportMismatchMonitor(patience=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for accuracy, saturated in [(1.0, 1.0)] * 2 + [(0.98, 1.0)] + [(1.0, 1.0)] * 2:
            assert not monitor.observe(accuracy, saturated)
        assert not monitor.observe(1.0, 0.89)  # sure of itself, but with a gradient left
        assert not monitor.observe(float("nan"), 1.0)
        assert not monitor.observe(0.99, 0.9)
        assert not monitor.observe(0.99, 0.9)
    with pytest.warns(sa.SupportMismatchWarning, match="supports of data and model do not") as got:
        assert monitor.observe(0.99, 0.9)
    assert len(got) == 1
    assert got[0].filename == __file__  # stacklevel: the caller's line, not the library's
    text = str(got[0].message)
    for part in ("perfectly", "saturated", "gradient vanishes", 'noise={"x": GaussianNoise(0.3)}'):
        assert part in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(monitor.observe(1.0, 1.0) for _ in range(10))


def test_the_monitor_has_a_patience_of_twenty_and_warns_once_as_an_error_too():
    monitor = sa.SupportMismatchMonitor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(monitor.observe(1.0, 1.0) for _ in range(19))
        with pytest.raises(sa.SupportMismatchWarning):
            monitor.observe(1.0, 1.0)
        assert not monitor.observe(1.0, 1.0)
    assert issubclass(sa.SupportMismatchWarning, UserWarning)


def test_the_monitor_refuses_bad_limits():
    with pytest.raises(ValueError, match="`patience` must be an integer of at least 1, got 0"):
        sa.SupportMismatchMonitor(patience=0)
    with pytest.raises(ValueError, match=r"`accuracy_limit` must lie in \(0, 1\], got 1.5"):
        sa.SupportMismatchMonitor(accuracy_limit=1.5)
    with pytest.raises(ValueError, match=r"`saturated_limit` must lie in \(0, 1\], got 0"):
        sa.SupportMismatchMonitor(saturated_limit=0)


def test_the_calibration_plot_shows_the_filled_bins():
    figure = Figure()
    report = sa.critic_report(*optimal_logits(0.5, 2000), num_bins=50)
    filled = report.bin_weight > 0
    assert not filled.all()
    axes = sa.plot_calibration(report)
    assert axes.figure.axes == [axes]
    assert axes.get_title() == f"calibration error {report.expected_calibration_error:.3f}"
    diagonal, curve = axes.get_lines()
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    expected = np.stack([report.bin_confidence, report.bin_frequency], axis=1)[filled]
    np.testing.assert_array_equal(curve.get_xydata(), expected)
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), expected)
    given = figure.add_subplot()
    assert sa.plot_calibration(report, title="mine", ax=given) is given
    assert given.get_title() == "mine"
    figure.canvas.draw()


def test_the_calibration_plot_names_a_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"`spread_analysis\.plot_calibration` needs matplotlib"):
        sa.plot_calibration(sa.critic_report(DATA, MODEL))
