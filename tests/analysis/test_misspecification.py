# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Observations that no simulation looks like: found, and simulations taken for one at a rate."""

import numpy as np
import pytest
from scipy import stats

import spread_analysis as sa

MIX = np.array([[1.0, 0.9, 0.0], [0.0, 0.4, 1.0], [0.2, 0.0, 3.0]])
SOURCES = {
    "normal": lambda rng, n: rng.standard_normal((n, 3)) @ MIX,
    "heavy tails": lambda rng, n: rng.standard_cauchy((n, 2)),
    "counts": lambda rng, n: rng.poisson(30.0, (n, 3)),
    "a constant": lambda rng, n: np.c_[np.ones(n), rng.standard_normal(n)],
    "collinear": lambda rng, n: rng.standard_normal((n, 1)) @ np.ones((1, 3)),
    "more columns than rows": lambda rng, n: rng.standard_normal((n, 150)),
    "images": lambda rng, n: rng.standard_normal((n, 3, 4)),
}


def simulations(source, num, seed=0):
    return SOURCES[source](np.random.default_rng(seed), num)


@pytest.mark.parametrize("source", SOURCES)
def test_simulations_are_taken_for_outside_at_the_stated_rate(source):
    p = []
    for seed in range(200):
        rows = simulations(source, 121, seed)
        p.append(sa.SimulatedRange.fit(rows[1:], seed).p_value(rows[0]))
    for level in (0.05, 0.25):
        low, high = stats.binom.interval(0.999, 200, level)
        assert low <= np.sum(np.array(p) <= level) <= high


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("normal", [9.0, 0.0, 0.0]),  # one column
        ("normal", [1.5, -3.5, 1.5]),  # none of them, but not together
        ("heavy tails", [1e9, 0.0]),
        ("counts", [60, 0, 0]),
        ("counts", [0.5, 0.0, 0.0]),  # no whole number
        ("a constant", [0.01, 0.0]),
        ("collinear", [0.0, 0.1, 0.0]),
        ("more columns than rows", np.eye(150)[7] * 20),
        ("images", np.eye(3, 4) * 6),
    ],
)
def test_what_was_not_simulated_is_outside(source, change):
    rows = simulations(source, 2001)
    usual = sa.SimulatedRange.fit(rows[1:])
    middle = np.median(rows, axis=0)
    assert usual.p_value(middle) > 0.05
    assert usual.p_value(middle + change) <= 0.002


def test_simulations_that_are_all_alike_are_as_usual_as_each_other():
    usual = sa.SimulatedRange.fit(np.ones((100, 2)))
    assert usual.p_value([1.0, 1.0]) == 1.0
    assert usual.p_value([1.0, 2.0]) == 1 / 51


def test_of_two_far_out_the_farther_is_more_surprising():
    usual = sa.SimulatedRange.fit(simulations("normal", 400))
    near, far = usual.score([[100.0, 0.0, 0.0], [1000.0, 0.0, 0.0]])  # tails of e-1000 and less
    assert 1000 < near < far < np.inf


def test_units_do_not_matter():
    rows = simulations("normal", 500)
    scale = np.array([1e-9, 1.0, 1e6])
    one, other = sa.SimulatedRange.fit(rows), sa.SimulatedRange.fit(rows * scale)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-6)


def test_columns_that_were_not_simulated_are_named():
    rows = np.c_[np.ones(400), simulations("normal", 400), simulations("counts", 400)]
    usual = sa.SimulatedRange.fit(rows)
    assert usual.outside(np.median(rows, axis=0)) == {}
    wrong = np.median(rows, axis=0)
    wrong[[0, 1, 4]] = 1.5, -20.0, 30.5
    found = usual.outside(wrong)
    assert list(found) == [0, 1, 4]
    assert found[0] == "1.5, but all simulations have 1"
    assert found[1].startswith("-20, but simulations lie between -")
    assert found[4] == "30.5, but all simulations have whole numbers"


def test_the_warning_says_where_and_what_to_do():
    columns, names = sa.misspecification.data_columns(
        {"count": np.arange(400) % 7, "x": simulations("normal", 400)}
    )
    assert names == ["count", "x[0]", "x[1]", "x[2]"]
    usual = sa.SimulatedRange.fit(columns)
    with pytest.warns(sa.MisspecificationWarning) as caught:
        p = usual.warn([3.0, 0.0, 50.0, 0.0], names=names)
    (text,) = [str(w.message) for w in caught]
    assert p == 1 / 201
    assert caught[0].filename == __file__
    assert "of 200 simulations held out, 0 are as unusual (p = 0.005). x[1] is 50, but" in text
    assert "Check the units of the data and the order of the columns, widen the prior" in text
    with pytest.warns(sa.MisspecificationWarning, match="column 2 is 50"):
        usual.warn([3.0, 0.0, 50.0, 0.0])
    many = sa.SimulatedRange.fit(simulations("more columns than rows", 400))
    with pytest.warns(sa.MisspecificationWarning, match=r"column 4 is 9, .* and 145 more\. The"):
        many.warn(np.full(150, 9.0))


def test_a_simulation_is_not_warned_of(recwarn):
    rows = simulations("normal", 400)
    assert sa.SimulatedRange.fit(rows).warn(np.median(rows, axis=0)) > 0.5
    assert not recwarn.list


def test_its_arrays_restore_it():
    usual = sa.SimulatedRange.fit(simulations("normal", 400), seed=3)
    again = sa.SimulatedRange(**{name: np.array(v) for name, v in usual.arrays().items()})
    rows = simulations("normal", 50, seed=1)
    np.testing.assert_array_equal(usual.score(rows), again.score(rows))
    assert again.p_value(rows[0]) == usual.p_value(rows[0])


ROWS = simulations("normal", 100)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sa.SimulatedRange.fit(np.where(ROWS > 1, np.nan, ROWS)),
            r"`simulated` must be finite, but \d+ of its entries are not. Leave failed",
        ),
        (lambda: sa.SimulatedRange.fit(ROWS[:39]), "39 simulations are too few.*at least 40"),
        (
            lambda: sa.SimulatedRange.fit(ROWS).p_value([1.0]),
            "`observed` has 1 numbers, but each simulation has 3",
        ),
        (
            lambda: sa.SimulatedRange.fit(ROWS).p_value([1.0, np.nan, 0.0]),
            "`observed` must be finite, but 1",
        ),
        (lambda: sa.SimulatedRange.fit(ROWS).warn(ROWS[0], level=0.0), "`level` must lie strictly"),
        (
            lambda: sa.SimulatedRange.fit(ROWS).warn(ROWS[0]),
            "`level` 0.01 cannot be reached: with 50 simulations held out the least p-value is 0.0",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
