# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The watch over a lagging critic, and the report of a fresh one."""

import contextlib
import dataclasses
import json
import warnings

import numpy as np
import pytest

import spread_analysis as sa
from spread_core.monitors import LAGGING_ACCURACY, EvidenceGapMonitor


def test_the_monitor_warns_once_after_patience_steps_in_a_row():
    monitor = sa.FalseEvidenceMonitor(patience=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for accuracy in (1.0, 1.0, 0.97, 1.0, 1.0, float("nan"), LAGGING_ACCURACY, 0.99):
            assert not monitor.observe(accuracy)
    with pytest.warns(sa.FalseEvidenceWarning) as got:
        assert monitor.observe(LAGGING_ACCURACY)
    assert len(got) == 1
    assert got[0].filename == __file__  # stacklevel: the caller's line, not the library's
    text = str(got[0].message)
    for part in ("may lie far above the evidence", "adaptive=True", "held_out_check"):
        assert part in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(monitor.observe(1.0) for _ in range(10))


def test_the_monitor_has_a_patience_of_fifty_and_warns_once_as_an_error_too():
    monitor = sa.FalseEvidenceMonitor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(monitor.observe(1.0) for _ in range(49))
        with pytest.raises(sa.FalseEvidenceWarning):
            monitor.observe(1.0)
        assert not monitor.observe(1.0)
    assert issubclass(sa.FalseEvidenceWarning, UserWarning)
    assert not issubclass(sa.FalseEvidenceWarning, sa.SupportMismatchWarning)


def test_the_monitor_refuses_bad_limits():
    with pytest.raises(ValueError, match="`patience` must be an integer of at least 1, got 0"):
        sa.FalseEvidenceMonitor(patience=0)
    with pytest.raises(ValueError, match=r"`accuracy_limit` must lie in \(0, 1\], got 98"):
        sa.FalseEvidenceMonitor(accuracy_limit=98)


def told(monitor, *gaps):
    """Tell a monitor gaps, each for a whole block; whether it warned."""
    return [monitor.observe(gap) for gap in gaps for _ in range(monitor.block)].count(True)


def test_a_gap_that_stays_is_warned_of_once():
    monitor = EvidenceGapMonitor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert told(monitor, *[2.0] * 6) == 0
        assert not any(monitor.observe(float("nan")) for _ in range(1000))  # nobody looked
    with pytest.warns(sa.FalseEvidenceWarning, match=r"lies 2 ± 0 nats above .*held_out_check"):
        assert told(monitor, 2.0) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert told(monitor, *[2.0] * 20) == 0
    with pytest.warns(sa.FalseEvidenceWarning, match="lies inf"):
        assert told(EvidenceGapMonitor(), *[float("inf")] * 8) == 1


@pytest.mark.parametrize(
    "gaps",
    [
        [20 * 0.5**n for n in range(30)],  # closing
        [0.25] * 30,  # harmless
        [-3.0] * 30,  # a value that is too low
        [*[0.0] * 20, *[5.0] * 9],  # not for half of the steps
    ],
)
def test_other_gaps_are_not(gaps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert told(EvidenceGapMonitor(), *gaps) == 0


def test_looks_that_are_not_finite_are_left_out():
    monitor = EvidenceGapMonitor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):  # at the edge of a prior's support, and a datum that is a point
            told(monitor, 0.0)
            assert not monitor.observe(float("-inf"))
            assert not monitor.observe(float("inf"))
    monitor = EvidenceGapMonitor()
    monitor.observe(float("-inf"))
    with pytest.warns(sa.FalseEvidenceWarning, match="lies 5 ± 0"):
        assert told(monitor, *[5.0] * 8) == 1


def test_of_many_data_a_tenth_of_a_nat_each_is_harmless():
    for num, warns in ((29, True), (30, False)):
        monitor = EvidenceGapMonitor()
        with pytest.warns(sa.FalseEvidenceWarning) if warns else contextlib.nullcontext():
            for _ in range(8 * monitor.block):
                monitor.observe(2.95, num)
        assert monitor.warned is warns
        whole = dataclasses.replace(report(2.95, 0.5), num_data=num)
        assert whole.is_false() is warns
        assert whole.is_known()


def test_a_gap_within_the_noise_is_not_and_the_state_is_plain():
    noise = np.random.default_rng(0).normal(0.2, 4.0, 4000)
    monitor = EvidenceGapMonitor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(map(monitor.observe, noise))
    before = monitor.get_state()
    kept = json.dumps(before)
    monitor.observe(1.0)
    assert json.dumps(before) == kept  # a step can be undone
    other = EvidenceGapMonitor()
    other.set_state(json.loads(json.dumps(monitor.get_state())))
    assert other.get_state() == monitor.get_state()
    with pytest.warns(sa.FalseEvidenceWarning):
        assert any(map(monitor.observe, noise + 4))


def test_doubts_are_of_gaps_that_hardly_close():
    monitor = EvidenceGapMonitor()
    assert monitor.has_doubts()  # nothing is known yet
    for gaps, doubts in (([3.0] * 8, True), ([0.0] * 8, False), ([9, 8, 7, 6, 5, 4, 3, 2], False)):
        for gap in gaps:
            monitor.observe(gap)
        assert monitor.has_doubts() is doubts


def test_the_gap_monitor_refuses_bad_limits():
    with pytest.raises(ValueError, match="`patience` must be an integer of at least 3, got 2"):
        EvidenceGapMonitor(patience=2)
    with pytest.raises(ValueError, match="`block` must be an integer of at least 2, got 1"):
        EvidenceGapMonitor(block=1)


def test_of_several_fresh_critics_the_best_on_other_draws_counts():
    rng = np.random.default_rng(1)
    reported = rng.normal(size=400)
    worse, better = reported + rng.normal(0.5, 1.0, 400), reported + rng.normal(-1.0, 0.5, 400)
    found = sa.EvidenceReport.from_draws(reported, [worse, better, np.full(400, np.nan)])
    alone = sa.EvidenceReport.from_draws(reported, better)
    assert found == alone
    # Fifty that are all alike: the best of them by chance is none on other draws.
    alike = reported + rng.normal(0.0, 1.0, (50, 400))
    found = sa.EvidenceReport.from_draws(reported, alike)
    assert abs(found.gap) < 3 * found.standard_error
    assert (reported - alike).mean() == pytest.approx(0.0, abs=0.02)


def report(gap, error):
    return sa.EvidenceReport(-10.0 + gap, -10.0, gap, error, 4000)


def test_a_gap_is_false_evidence_if_it_is_large_and_certain():
    assert report(0.5, 0.2).is_false()
    assert not report(0.5, 0.26).is_false()  # not certain
    assert not report(0.29, 0.01).is_false()  # not large
    assert report(0.09, 0.01).is_false(threshold=0.05)
    assert not report(-3.0, 0.1).is_false()  # an estimate that is too low is a bad bound, no lie
    assert report(float("nan"), 0.1).is_false()
    assert report(0.0, float("nan")).is_false()


def test_where_the_fresh_critic_is_the_worse_one_nothing_is_known():
    for unknown in (report(-0.5, 0.1), report(0.2, 0.6)):
        assert not unknown.is_known()
        assert str(unknown).endswith(" not known")
    for known in (report(0.2, 0.1), report(-0.2, 0.1), report(-0.5, 0.3), report(2.0, 0.8)):
        assert known.is_known()


def test_the_report_is_frozen_and_readable():
    false = report(1.25, 0.05)
    with pytest.raises(dataclasses.FrozenInstanceError):
        false.gap = 0.0
    lines = [line.split() for line in str(false).splitlines()]
    assert lines[0][:2] == ["estimate", "-8.7500"]
    assert lines[1][:3] == ["fresh", "estimate", "-10.0000"]
    assert lines[2] == ["gap", "1.2500", "±", "0.0500", "nats", "over", "4000", "draws"]
    assert lines[3] == ["false", "evidence", "yes"]
    assert str(report(0.0, 0.05)).endswith(" no")
