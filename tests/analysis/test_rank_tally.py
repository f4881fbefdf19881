# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every simulation counts once, and only what no mask leaves out."""

import numpy as np
import pytest

import spread_analysis as sa
from spread_analysis.rank_tally import Ranked, RankTally
from spread_analysis.ranks import simulation_ranks

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(100, 2))  # theta, x


def ranked(theta, kept=True, num_draws=9):
    draws = RNG.normal(size=(num_draws, *theta.shape))
    return {"theta": Ranked(theta, draws, np.broadcast_to(kept, theta.shape), [-1])}


def tally(num_simulations, rows):
    """Runs of the given rows (theta, x), as long as the tally wants them."""
    found, runs = RankTally(num_simulations, 9), 0
    while found.wants_more:
        run = rows(runs)
        found.add(ranked(run[:, 0]), [(run[:, 1], [-1])], seed=runs)
        runs += 1
    return found.report(), runs


def test_fresh_simulations_go_on_until_there_are_enough():
    report, runs = tally(250, lambda run: RNG.normal(size=(100, 2)))
    assert (len(report.ranks["theta"]), runs, report.recorded) == (300, 3, False)
    assert str(report).endswith(" 300 simulations")


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        (lambda run: TABLE, 100),  # the table at once
        (lambda run: np.stack([TABLE[:, 0], RNG.normal(size=100)], -1), 100),  # data made afresh
        (lambda run: np.round(10 * TABLE), 100),  # of whole numbers
        (lambda run: TABLE[[*range(30 * run, 30 * run + 30)] % np.array(100)], 100),  # in batches
        (lambda run: TABLE[RNG.integers(100, size=50)], 100),  # rows at random
        (lambda run: TABLE[:1], 1),
    ],
)
def test_a_recording_is_counted_once(rows, count):
    report, runs = tally(1000, rows)
    assert 0.9 * count <= len(report.ranks["theta"]) <= count
    assert report.recorded
    assert runs <= 10 or count < 100
    assert str(report).endswith(" simulations, all that the model has recorded")


def test_discrete_models_come_up_again_by_nature():
    report, _ = tally(500, lambda run: RNG.integers(3, size=(50, 2)).astype(float))
    assert len(report.ranks["theta"]) == 500
    report, _ = tally(500, lambda run: RNG.integers(2, size=(1, 2)).astype(float))
    assert len(report.ranks["theta"]) == 500


def test_single_precision_may_repeat_a_row_by_chance():
    rows = RNG.normal(size=(1000, 1, 2))
    rows[500] = rows[3]
    report, _ = tally(1000, lambda run: rows[run])
    assert len(report.ranks["theta"]) == 1000
    assert not report.recorded


def test_a_constant_site_is_no_recording():
    found = RankTally(300, 9)
    while found.wants_more:
        z = RNG.normal(size=100)
        sites = ranked(z) | {"scale": ranked(np.ones(100))["theta"]}
        found.add(sites, [(z, [-1])])
    report = found.report()
    assert len(report.ranks["theta"]) == len(report.ranks["scale"]) == 300


def test_masked_elements_have_no_rank():
    found = RankTally(100, 9)
    theta = RNG.normal(size=100)
    theta[::4] = np.nan
    found.add(ranked(theta, np.isfinite(theta)), [(theta, [-1])])
    report = found.report()
    assert report.ranks["theta"].shape == (75,)
    assert not np.ma.isMaskedArray(report.ranks["theta"])


def test_masked_components_are_in_no_test():
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 10, (400, 3))
    ranks[:200, 1] = 9  # what is masked must not matter
    mask = np.zeros((400, 3), bool)
    mask[:200, 1] = mask[:, 2] = True
    report = sa.CalibrationReport({"z": np.ma.MaskedArray(ranks, mask)}, 9)
    values = report.p_values()["z"]
    alone = [sa.CalibrationReport({"z": part}, 9) for part in (ranks[:, 0], ranks[200:, 1])]
    np.testing.assert_array_equal(values[:2], [float(a.p_values()["z"]) for a in alone])
    assert np.isnan(values[2])
    assert report.p_value() == 2 * min(values[:2])
    counts, expected = report.histogram("z", (1,), 10)
    assert counts.sum() == expected.sum() == 200
    lines = str(report).splitlines()
    assert lines[0].split()[-3:-1] == ["mean", "rank"]
    assert lines[1].endswith(" of 200")
    assert lines[2].endswith(" of 0")
    assert lines[-1].endswith(" 400 simulations")


def test_a_run_masks_parts_of_a_simulation():
    found = RankTally(50, 9)
    theta = RNG.normal(size=(50, 2))
    kept = np.ones((50, 2), bool)
    kept[:10, 0] = kept[:5, 1] = False
    found.add({"theta": Ranked(theta, RNG.normal(size=(9, 50, 2)), kept, [-2])}, [])
    ranks = found.report().ranks["theta"]
    assert ranks.shape == (45, 2)
    assert ranks.count(0).tolist() == [40, 45]


def test_a_site_of_which_nothing_is_left_is_named():
    found = RankTally(50, 9)
    found.add(ranked(RNG.normal(size=50), kept=False), [])
    with pytest.raises(ValueError, match=r"'theta' is masked in all 50 simulations.*sites="):
        found.report()


def test_what_does_not_count_may_be_nan():
    ranks = simulation_ranks([np.nan, 0.5], [[0.0, np.nan], [1.0, 0.2]], kept=[False, False])
    assert ranks.tolist() == [0, 0]
    with pytest.raises(ValueError, match="must not hold NaN"):
        simulation_ranks([np.nan, 0.5], [[0.0, 1.0]], kept=[True, True])
