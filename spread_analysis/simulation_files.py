# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Simulations on disk, written so that a run that is killed at any moment goes on where it was.

While simulations are made, every chunk of them is a netCDF file of its own in a folder beside the
table to come, put there whole by a rename. At the end one file takes their place, in the same way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spread_analysis.arviz_groups import read_attributes, write_groups
from spread_analysis.simulations import Simulations
from spread_core.messages import tables

_NOTE = "pyro_spread_simulations"
_PART = re.compile(r"(\d+)-(\d+)\.nc")
# Row and chunk are computed together or alone, which may change the last digits.
_TOLERANCE = 1e-3


class SimulationFile:
    """
    The file of a table, and the folder of its parts until it is whole.

    :param path: of the file, which ends with ".nc".
    :raises ValueError: if it has another ending, or is there and was not written by this class.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix != ".nc":
            raise ValueError(tables.not_netcdf(path))
        self._folder = self.path.with_name(self.path.name + ".parts")
        self._manifest = self._folder / "run.json"
        #: What the simulations on disk belong to; empty if there are none.
        self.note: dict[str, Any] = {}
        #: How many simulations the whole table has; 0 if it is not whole.
        self.num_simulations = 0
        if self.path.exists():
            attributes = read_attributes(self.path)
            if _NOTE not in attributes:
                raise ValueError(tables.not_ours(path))
            self.note = json.loads(attributes[_NOTE])
            self.num_simulations = int(self.note["num_simulations"])
        elif self._manifest.exists():
            self.note = json.loads(self._manifest.read_text())

    def check(self, note: Mapping[str, Any]) -> None:
        """
        Refuse to go on with other settings.

        :param note: dict from what they are called to what they are now, as of JSON.
        :raises ValueError: naming the first that differs.
        """
        for what, now in json.loads(json.dumps(note)).items():
            stored = self.note.get(what)
            if isinstance(now, dict) and isinstance(stored, dict):
                for key in [*stored, *now]:
                    if stored.get(key) != now.get(key):
                        pair = stored.get(key), now.get(key)
                        raise ValueError(tables.other_run(self.path, f"{what} '{key}'", *pair))
            elif stored != now:
                raise ValueError(tables.other_run(self.path, what, stored, now))

    def start(self, note: Mapping[str, Any]) -> None:
        """
        Begin anew, or go on with simulations that are there already.

        :param note: what they belong to.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self.note = dict(note)
        _put_text(self._manifest, json.dumps(self.note, indent=1))

    def forget(self) -> None:
        """Remove all simulations."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self.num_simulations, self.note = 0, {}

    def parts(self) -> dict[tuple[int, int], Simulations]:
        """What is there, by number of the first simulation and that after the last."""
        found: dict[tuple[int, int], Simulations] = {}
        if self.num_simulations:
            table = Simulations.from_arviz(self.path)
            found[0, len(table)] = table
        for path in sorted(self._folder.glob("*.nc")) if self._folder.is_dir() else []:
            name = _PART.fullmatch(path.name)
            if name:
                found[int(name[1]), int(name[2])] = Simulations.from_arviz(path)
        return found

    def add(self, start: int, stop: int, table: Simulations) -> None:
        """Write the simulations from ``start`` up to ``stop``."""
        _put_table(self._folder / f"{start:08d}-{stop:08d}.nc", table, {})

    def finish(self, table: Simulations) -> None:
        """Write all of them to one file, and remove the parts."""
        note = {**self.note, "num_simulations": len(table)}
        _put_table(self.path, table, {_NOTE: json.dumps(note)})
        shutil.rmtree(self._folder, ignore_errors=True)


def first_difference(old: Simulations, new: Simulations) -> tuple[int, str] | None:
    """
    Number of the first row, and the site, at which two tables of the same runs differ.

    :param old: one of them.
    :param new: the other one; rows that failed in it are not compared.
    """
    both = np.flatnonzero(old.valid & new.valid)
    for site in new.values:
        if site not in old or old[site].shape[1:] != new[site].shape[1:]:
            return int(both[0]) if len(both) else 0, site
    for row in both:
        for site, value in new.values.items():
            one, two = old[site][row], value[row]
            if not np.allclose(one, two, _TOLERANCE, _TOLERANCE, equal_nan=True):
                return int(row), site
    return None


def _put_table(path: Path, table: Simulations, attributes: Mapping[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    write_groups(table.to_arviz(), temporary, attributes)
    _settle(temporary, path)


def _put_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    _settle(temporary, path)


def _settle(temporary: Path, path: Path) -> None:
    """Have the whole file on the disk before it gets its name."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
