# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The table of simulations: its rows, sites and masks, and what it refuses."""

import pickle
import re

import numpy as np
import pytest

from spread_analysis import Simulations

RNG = np.random.default_rng(0)
THETA = RNG.standard_normal((20, 2)).astype(np.float32)
X = RNG.integers(0, 5, (20, 3))


def table():
    return Simulations.from_dict({"theta": THETA}, {"x": X})


def test_sites_keep_their_order_shape_and_dtype():
    sims = table()
    assert len(sims) == 20
    assert list(sims.values) == ["theta", "x"]
    assert sims["theta"].dtype == np.float32
    assert sims["x"].dtype == X.dtype
    assert (sims.latents, sims.observed) == (("theta",), ("x",))
    assert "x" in sims
    assert "y" not in sims


def test_with_one_dict_nobody_has_said_which_sites_are_data():
    sims = Simulations.from_dict({"theta": THETA, "x": X})
    assert (sims.latents, sims.observed) == (("theta", "x"), ())
    assert repr(sims) == "Simulations(20 rows; sites theta (2,), x (3,))"


def test_values_cannot_be_exchanged():
    sims = table()
    sims.values["theta"] = None
    assert sims["theta"] is not None
    with pytest.raises(TypeError):
        sims["theta"] = THETA


def test_a_row_is_valid_where_it_is_finite_and_masked_elements_do_not_count():
    theta, y = THETA.copy(), np.zeros((20, 3, 2))
    theta[3, 1], y[4, 0, 0], y[5, 2, 1] = np.nan, np.inf, np.nan
    mask = np.ones((20, 3), bool)
    mask[5, 2] = False
    sims = Simulations({"theta": theta, "y": y}, ["y"], {"y": mask})
    assert np.flatnonzero(~sims.valid).tolist() == [3, 4]
    assert repr(sims).startswith("Simulations(20 rows, 2 of them failed; ")


def test_a_run_of_integers_may_have_failed_too():
    failed = np.arange(20) == 7
    sims = Simulations({"x": X}, failed=failed)
    assert np.flatnonzero(~sims.valid).tolist() == [7]
    assert np.flatnonzero(~sims.take([6, 7]).valid).tolist() == [1]


def test_some_rows():
    mask = np.arange(60).reshape(20, 3) % 2 == 0
    sims = Simulations({"theta": THETA, "x": X}, "x", {"x": mask})
    for rows in ([3, 1], slice(2, 9), THETA[:, 0] > 0):
        part = sims.take(rows)
        np.testing.assert_array_equal(part["x"], X[rows])
        np.testing.assert_array_equal(part.masks["x"], mask[rows])
        assert part.observed == ("x",)


def test_a_split_has_every_row_once_and_pairs_stay_pairs():
    sims = Simulations.from_dict({"theta": np.arange(50.0)}, {"x": np.arange(50)})
    train, held_out = sims.split(0.2, seed=1)
    assert (len(train), len(held_out)) == (40, 10)
    np.testing.assert_array_equal(np.sort(np.r_[train["x"], held_out["x"]]), np.arange(50))
    np.testing.assert_array_equal(train["theta"], train["x"])
    again, other = sims.split(0.2, seed=1)[1], sims.split(0.2, seed=2)[1]
    np.testing.assert_array_equal(again["x"], held_out["x"])
    assert not np.array_equal(other["x"], held_out["x"])


def test_it_is_pickled():
    again = pickle.loads(pickle.dumps(table()))
    assert repr(again) == repr(table())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Simulations.from_dict({"theta": THETA}, {"x": X[:9]}),
            "site 'x' of the table has 9 rows, but 'theta' has 20",
        ),
        (
            lambda: Simulations.from_dict({"theta": ["a", "b"]}),
            "site 'theta' of the table must hold numbers, got an array of type <U1",
        ),
        (lambda: Simulations.from_dict({"theta": 3.0}), "site 'theta' of the table is a single nu"),
        (lambda: Simulations.from_dict({}), "the table is empty"),
        (lambda: Simulations.from_dict({"theta": np.zeros((0, 2))}), "the table is empty"),
        (lambda: Simulations.from_dict({"x": X}, {"x": X}), "site 'x' is both in prior and in pri"),
        (lambda: Simulations({"x": X}, ["y"]), "observed names ['y'], but the sites are ['x']"),
        (lambda: Simulations({"x": X}, masks={"y": X}), "masks names ['y'], but the sites are"),
        (lambda: Simulations({"x": X}, masks={"x": X}), "site 'x': its mask must be of bools, got"),
        (
            lambda: Simulations({"x": X}, masks={"x": X[:, :2] > 0}),
            "site 'x': its mask has shape (20, 2), which is not the beginning of (20, 3)",
        ),
        (lambda: table().split(0.0), "fraction must be a number that leaves rows on both sides of"),
        (lambda: table().split(1.0), "fraction must be a number that leaves rows on both sides of"),
    ],
)
def test_what_makes_no_table_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_an_unknown_site_is_named():
    with pytest.raises(KeyError, match=r"no site 'y'; it has \['theta', 'x'\]"):
        table()["y"]
