# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Tables of simulations as ArviZ data: to it, from it, from files of several kinds."""

import re

import arviz
import numpy as np
import pytest
import xarray

from spread_analysis import Simulations, to_arviz
from spread_analysis.arviz_groups import write_groups
from spread_analysis.simulation_files import SimulationFile, first_difference

RNG = np.random.default_rng(0)
VALUES = {
    "x": RNG.integers(0, 5, (20, 3, 2)),  # data may stand before latents
    "enc/z": RNG.standard_normal((20, 2)).astype(np.float32),
    "a": RNG.standard_normal(20),
}
MASK = RNG.random((20, 3)) > 0.5
FAILED = np.arange(20) == 7


def table():
    return Simulations(VALUES, ["x"], {"x": MASK}, FAILED)


def assert_same(one, other):
    assert list(one.values) == list(other.values)
    for site, value in one.values.items():
        np.testing.assert_array_equal(value, other[site])
        assert value.dtype == other[site].dtype
    assert one.observed == other.observed
    assert one.masks.keys() == other.masks.keys()
    for site, mask in one.masks.items():
        np.testing.assert_array_equal(mask, other.masks[site])
    np.testing.assert_array_equal(one.failed, other.failed)


def test_latents_are_the_prior_and_data_the_prior_predictive():
    data = Simulations.from_dict({"z": VALUES["a"]}, {"x": VALUES["x"]}).to_arviz()
    assert set(data.groups()) == {"prior", "prior_predictive"}
    assert dict(data.prior_predictive["x"].sizes) == {
        "chain": 1, "draw": 20, "x_dim_0": 3, "x_dim_1": 2,
    }  # fmt: skip


def test_there_and_back_in_memory():
    assert_same(table(), Simulations.from_arviz(table().to_arviz()))


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_there_and_back_by_a_file(tmp_path):
    write_groups(table().to_arviz(), tmp_path / "table.nc", {})
    assert_same(table(), Simulations.from_arviz(tmp_path / "table.nc"))
    assert_same(table(), Simulations.from_arviz(str(tmp_path / "table.nc")))
    data = arviz.from_netcdf(str(tmp_path / "table.nc"))
    assert_same(table(), Simulations.from_arviz(data))
    tree = data.to_datatree()
    assert_same(table(), Simulations.from_arviz(tree))
    pytest.importorskip("zarr")
    tree.to_zarr(tmp_path / "table.zarr")
    assert_same(table(), Simulations.from_arviz(tmp_path / "table.zarr"))


def test_chains_of_somebody_else_follow_one_another():
    draws = RNG.standard_normal((4, 5, 2))
    data = arviz.from_dict(prior={"z": draws}, prior_predictive={"x": draws[..., 0]})
    sims = Simulations.from_arviz(data)
    np.testing.assert_array_equal(sims["z"], draws.reshape(20, 2))
    assert sims.observed == ("x",)


def test_a_dataset_is_one_table_whose_data_the_model_names(tmp_path):
    data = xarray.Dataset({"z": ("sim", VALUES["a"]), "x": (("sim", "t"), VALUES["x"][..., 0])})
    sims = Simulations.from_arviz(data)
    assert (sims.latents, sims.observed, len(sims)) == (("z", "x"), (), 20)
    data.to_netcdf(tmp_path / "plain.nc", engine="h5netcdf")
    assert_same(sims, Simulations.from_arviz(tmp_path / "plain.nc"))


def test_nan_is_a_failed_row():
    values = np.where(FAILED, np.nan, VALUES["a"])
    sims = Simulations.from_arviz(to_arviz(prior={"z": values}))
    np.testing.assert_array_equal(sims.valid, ~FAILED)


def test_what_holds_no_simulations_is_refused(tmp_path):
    message = "the InferenceData has neither a group 'prior' nor 'prior_predictive' to make a table"
    with pytest.raises(ValueError, match=message):
        Simulations.from_arviz(arviz.from_dict(posterior={"z": np.zeros((1, 5))}))
    with pytest.raises(
        TypeError, match=r"from_arviz takes an InferenceData, a DataTree, .* got int"
    ):
        Simulations.from_arviz(3)
    with pytest.raises(
        FileNotFoundError, match=r"there is no file '.*none\.nc' to read simulation"
    ):
        Simulations.from_arviz(tmp_path / "none.nc")


def test_a_path_must_be_free_and_of_netcdf(tmp_path):
    with pytest.raises(ValueError, match=r"path must end with '\.nc', got 'table\.zarr'"):
        SimulationFile("table.zarr")
    write_groups(table().to_arviz(), tmp_path / "own.nc", {})
    with pytest.raises(
        ValueError, match=r"own\.nc' is no table that simulate has written; it stay"
    ):
        SimulationFile(tmp_path / "own.nc")


def test_a_leftover_of_a_write_that_was_cut_short_is_not_read(tmp_path):
    file = SimulationFile(tmp_path / "t.nc")
    file.start({"seed": 0})
    file.add(0, 20, table())
    (tmp_path / "t.nc.parts" / ".00000020-00000040.nc.tmp").write_bytes(b"half")
    again = SimulationFile(tmp_path / "t.nc")
    assert list(again.parts()) == [(0, 20)]
    assert again.note == {"seed": 0}
    again.finish(table())
    assert [path.name for path in tmp_path.iterdir()] == ["t.nc"]
    assert SimulationFile(tmp_path / "t.nc").num_simulations == 20


def test_other_settings_are_named(tmp_path):
    file = SimulationFile(tmp_path / "t.nc")
    file.start({"seed": [0, 1], "arguments": {"x": "1.0", "y": "2.0"}})
    file.check({"seed": (0, 1), "arguments": {"x": "1.0", "y": "2.0"}})
    with pytest.raises(ValueError, match=re.escape("seed=[0, 1], this call has seed=[0, 2]")):
        file.check({"seed": [0, 2]})
    with pytest.raises(ValueError, match=r"arguments 'y'=2\.0, this call has arguments 'y'=3\.0"):
        file.check({"arguments": {"x": "1.0", "y": "3.0"}})
    with pytest.raises(ValueError, match=r"arguments 'y'=2\.0, this call has arguments 'y'=None"):
        file.check({"arguments": {"x": "1.0"}})


def test_the_first_difference_is_named_and_failed_rows_are_not_compared():
    old, new = table(), table()
    assert first_difference(old, new) is None
    values = {site: value.copy() for site, value in VALUES.items()}
    values["a"][7] += 1.0  # failed
    assert first_difference(old, Simulations(values, ["x"], failed=FAILED)) is None
    values["a"][9] += 1e-9  # another order of sums
    assert first_difference(old, Simulations(values, ["x"], failed=FAILED)) is None
    values["enc/z"][11, 1] += 0.1
    assert first_difference(old, Simulations(values, ["x"], failed=FAILED)) == (11, "enc/z")
    assert first_difference(old, Simulations({"b": values["a"]})) == (0, "b")
