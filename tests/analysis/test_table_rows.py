# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Rows of a table come to the places that the sites of a model have for them."""

import numpy as np

from spread_analysis import Simulations
from spread_analysis.table_rows import SiteOfTable, TableRows


def site(shape, axes, mask=True):
    return SiteOfTable(shape, axes, np.broadcast_to(mask, shape))


def test_rows_fill_several_plates_and_the_last_batch_counts_what_is_there():
    # Two plates of sizes 2 and 3, the first outermost; x has an event of size 4 behind them.
    table = Simulations.from_dict(
        {"z": np.arange(8.0)}, {"x": np.arange(8.0)[:, None] + np.linspace(0, 0.5, 4)}
    )
    sites = {"z": site((2, 3), [-2, -1]), "x": site((2, 3, 4), [-3, -2])}
    rows = TableRows(table, sites, ["x"])
    assert (rows.by_datum, rows.num_data) == (True, 6)
    first, last = list(rows)
    np.testing.assert_array_equal(first.values["z"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(first.values["x"][..., 0], first.values["z"])
    np.testing.assert_array_equal(first.values["x"][1, 2], table["x"][5])
    assert (first.number, last.number) == (6, 2)
    np.testing.assert_array_equal(last.values["z"].ravel()[:2], [6, 7])


def test_the_plate_of_the_data_may_be_the_inner_one():
    # z in both plates, w in that of the data alone, which is the last dimension.
    table = Simulations.from_dict({"z": np.arange(8.0).reshape(4, 2)}, {"w": np.arange(4.0)})
    sites = {"z": site((2, 4), [-1]), "w": site((4,), [-1])}
    (rows,) = TableRows(table, sites, ["w"])
    np.testing.assert_array_equal(rows.values["z"], table["z"].T)
    np.testing.assert_array_equal(rows.values["w"], table["w"])


def test_masks_of_table_and_model_come_to_the_same_places():
    ok = np.array([True, False, True, True])
    table = Simulations({"z": np.zeros((4, 2)), "x": np.where(ok, 1.0, np.nan)}, "x", {"x": ok})
    model_mask = np.array([[True, False], [True, True]])
    sites = {"z": site((2, 2), [-2], model_mask), "x": site((2,), [-1])}
    first, second = list(TableRows(table, sites, ["x"]))
    np.testing.assert_array_equal(first.kept["x"], [True, False])
    np.testing.assert_array_equal(first.values["x"], [1.0, 0.0])  # no NaN reaches a net
    np.testing.assert_array_equal(first.kept["z"], model_mask)
    np.testing.assert_array_equal(second.kept["z"], model_mask)


def test_a_row_that_is_a_run_keeps_its_shape():
    table = Simulations.from_dict({"mu": np.arange(3.0)}, {"x": np.ones((3, 5))})
    sites = {"mu": site((), []), "x": site((5,), [])}
    rows = list(TableRows(table, sites, ["x"]))
    assert [float(each.values["mu"]) for each in rows] == [0.0, 1.0, 2.0]
    assert [each.number for each in rows] == [1, 1, 1]
    assert rows[0].values["x"].shape == (5,)
