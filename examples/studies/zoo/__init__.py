# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
The zoo: every system of the literature on the same data, in one table.

A backend contributes, for every system, one function ``train(row, data, settings)`` that trains it
and returns arrays (``examples/pyro/zoo/``, ``examples/numpyro/zoo/``). Rows, options, the judge,
table, pictures and files are here, so that both backends report alike.
"""

from studies.zoo.data import MAX_COUNT, NUM_LEVELS, ZooData, load_zoo_data, pixel_places
from studies.zoo.program import main, run_backend, run_rows
from studies.zoo.report import write_report, zoo_table
from studies.zoo.rows import ROWS, SYSTEMS, Row, Settings, Trained
from studies.zoo.training import batches, learning_rate_factor, mixture_bound

__all__ = [
    "MAX_COUNT",
    "NUM_LEVELS",
    "ROWS",
    "SYSTEMS",
    "Row",
    "Settings",
    "Trained",
    "ZooData",
    "batches",
    "learning_rate_factor",
    "load_zoo_data",
    "main",
    "mixture_bound",
    "pixel_places",
    "run_backend",
    "run_rows",
    "write_report",
    "zoo_table",
]
