# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The watch over a lagging critic, and the report of a fresh one."""

import dataclasses
import warnings

import pytest

import spread_analysis as sa
from spread_core.monitors import LAGGING_ACCURACY


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


def report(gap, error):
    return sa.EvidenceReport(-10.0 + gap, -10.0, gap, error, 4000)


def test_a_gap_is_false_evidence_if_it_is_large_and_certain():
    assert report(0.5, 0.2).is_false()
    assert not report(0.5, 0.26).is_false()  # not certain
    assert not report(0.09, 0.01).is_false()  # not large
    assert report(0.09, 0.01).is_false(threshold=0.05)
    assert not report(-3.0, 0.1).is_false()  # an estimate that is too low is a bad bound, no lie
    assert report(float("nan"), 0.1).is_false()
    assert report(0.0, float("nan")).is_false()


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
