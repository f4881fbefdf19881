# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What a run of the zoo writes after every row, and takes up again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from studies.zoo import messages
from studies.zoo.rows import Settings

RESULTS_FILE = "results.json"
#: The first images of every row, for the picture.
SHOWN_FILE = "shown.npz"
_SAME = (
    "backend",
    "dataset",
    "smoke_test",
    "num_train",
    "num_held_out",
    "num_samples",
    "features",
)

Shown = dict[str, npt.NDArray[Any]]


def write_kept(output: Path, results: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    """
    Write numbers and images; a process that is killed leaves the old files or the new ones.

    :param output: the folder.
    :param results: as of :func:`studies.zoo.run_rows`.
    :param shown: by name of the row, some of its images.
    """
    new = output / f"new-{SHOWN_FILE}"
    np.savez_compressed(new, **shown)
    new.replace(output / SHOWN_FILE)
    new = output / f"new-{RESULTS_FILE}"
    new.write_text(json.dumps(results, indent=1))
    new.replace(output / RESULTS_FILE)


def read_kept(output: Path, results: Mapping[str, Any]) -> tuple[dict[str, Any], Shown]:
    """
    The rows that an earlier run has left, and their images; none if there was no run.

    :param output: the folder.
    :param results: what this run will write, with its rows to come.
    :raises SystemExit: if those rows are of other data.
    """
    path = output / RESULTS_FILE
    if not path.is_file():
        return {}, {}
    kept = json.loads(path.read_text())
    for key in _SAME:
        if kept.get(key) != results[key]:
            raise SystemExit(messages.other_results(path, key, kept.get(key), results[key]))
    with np.load(output / SHOWN_FILE) as images:
        shown = dict(images)
    # A row that has failed is as good as none.
    return {name: runs for name, runs in kept["rows"].items() if name in shown}, shown


def are_same_runs(runs: Sequence[Mapping[str, Any]], settings: Sequence[Settings]) -> bool:
    """
    Whether runs are those of these settings, seed by seed.

    :param runs: of one row, as kept.
    :param settings: one for each run that is wanted.
    """
    made = [{name: run.get(name) for name in Settings._fields} for run in runs]
    return made == [each._asdict() for each in settings]
