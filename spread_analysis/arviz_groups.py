# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Read groups of ArviZ data, from memory or from a file, and write them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spread_core.messages import tables
from spread_core.optional import import_extra

GROUPS = ("prior", "prior_predictive", "sample_stats_prior")
SITE, MASK, FAILED = "site", "mask", "failed"
_KIND, _OF, _NUMBER = "pyro_spread_kind", "pyro_spread_site", "pyro_spread_number"


class Column(NamedTuple):
    """
    A variable of a group.

    :param of: the site's own name; ArviZ and netCDF take no "/" in names.
    :param kind: what it is.
    :param number: of the site in the order of the program.
    :param values: of shape (rows, ...).
    """

    of: str
    kind: str = SITE
    number: int = 0
    values: NDArray = np.empty(0)


def label(data: Any, group: str, name: str, column: Column) -> None:
    """Note what a variable of ArviZ data is, so that it can be read again."""
    variables = data[group]
    name = name if name in variables else name.replace("/", ".")
    variables[name].attrs.update({_KIND: column.kind, _OF: column.of, _NUMBER: column.number})


def read_groups(data: Any) -> dict[str, dict[str, Column]]:
    """
    Groups of simulations by name, each a dict from variable to column.

    :param data: ArviZ data, a Dataset of xarray, or a path.
    :raises ValueError: if it has neither prior nor prior_predictive.
    :raises TypeError: if it is something else.
    """
    if isinstance(data, str | os.PathLike):
        where, found, others = f"'{os.fspath(data)}'", *_opened(Path(data))
    elif hasattr(data, "data_vars") and not hasattr(data, "children"):
        where, found, others = "the Dataset", {"prior": data}, ()
    elif hasattr(data, "children"):  # a DataTree
        where, others = "the DataTree", tuple(data.children)
        found = {name: data[name].to_dataset() for name in GROUPS if name in data.children}
    elif hasattr(data, "groups"):
        where, others = "the InferenceData", tuple(data.groups())
        found = {name: data[name] for name in GROUPS if name in others}
    else:
        raise TypeError(tables.no_arviz_data(data))
    if not {"prior", "prior_predictive"} & found.keys():
        raise ValueError(tables.no_groups(where, others))
    return {
        group: {str(name): _column(str(name), dataset[name]) for name in dataset.data_vars}
        for group, dataset in found.items()
    }


def write_groups(data: Any, path: Path, attributes: Mapping[str, str]) -> None:
    """
    Write ArviZ data as netCDF.

    :param data: what :func:`spread_analysis.to_arviz` returns.
    :param path: of the file.
    :param attributes: of the file.
    """
    xarray = import_extra("xarray", "Simulations")
    xarray.Dataset(attrs=dict(attributes)).to_netcdf(path, mode="w", engine="h5netcdf")
    for group in GROUPS:
        present = data.children if hasattr(data, "children") else data.groups()
        if group in present:
            variables = data[group]
            dataset = variables.to_dataset() if hasattr(variables, "children") else variables
            dataset = dataset.rename({name: str(name).replace("/", ".") for name in dataset})
            dataset = dataset.rename({d: str(d).replace("/", ".") for d in dataset.dims})
            dataset.to_netcdf(path, mode="a", group=group, engine="h5netcdf")


def read_attributes(path: Path) -> dict[str, str]:
    """Attributes of a netCDF file."""
    xarray = import_extra("xarray", "Simulations")
    with xarray.open_dataset(path, engine="h5netcdf") as dataset:
        return dict(dataset.attrs)


def _opened(path: Path) -> tuple[dict[str, Any], Iterable[str]]:
    if not path.exists():
        raise FileNotFoundError(tables.no_file(path))
    xarray = import_extra("xarray", "Simulations.from_arviz")
    engine = "zarr" if path.is_dir() else "h5netcdf"
    groups = xarray.open_groups(path, engine=engine)
    try:
        named = {name.strip("/"): dataset for name, dataset in groups.items()}
        found = {name: named[name].load() for name in GROUPS if name in named}
        others = [name for name in named if name]
        if not found and not others:  # no groups, but one table
            found = {"prior": named[""].load()} if named[""].data_vars else {}
    finally:
        for dataset in groups.values():
            dataset.close()
    return found, others


def _column(name: str, array: Any) -> Column:
    samples = [dim for dim in ("chain", "draw", "sample") if dim in array.dims]
    values = array.transpose(*samples, ...).to_numpy()
    if len(samples) == 2:  # chains one after another
        values = values.reshape(-1, *values.shape[2:])
    site, kind = str(array.attrs.get(_OF, name)), str(array.attrs.get(_KIND, SITE))
    return Column(site, kind, int(array.attrs.get(_NUMBER, 0)), np.array(values))
