# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One unit of ``sbi_programs.py``, in a process of its own: references, or one training."""

from __future__ import annotations

import importlib
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from programs_data import PROGRAMS, Program, moments

Row = dict[str, Any]


def say(row: Row) -> None:
    """A result, at once: what comes later may fail."""
    print(json.dumps(row), flush=True)


def references(unit: Row) -> None:
    """Data sets, written to a file, and NUTS on those that are not done."""
    backend, program = importlib.import_module("programs_numpyro"), PROGRAMS[unit["program"]]
    sets = backend.data_sets(program, unit["num_sets"], seed=1)
    path = Path(unit["sets"])
    np.savez(path.with_suffix(".part.npz"), *sets)
    path.with_suffix(".part.npz").replace(path)
    nuts = backend.Reference(program, unit["num_reference"])
    for number, data in enumerate(sets):
        if number not in unit["done"]:
            say({"kind": "reference", "set": number, **nuts(data, seed=number)})


def training(unit: Row) -> None:
    """Train, draw for every data set, refine the draws, and check."""
    backend, program = importlib.import_module(f"programs_{unit['backend']}"), unit["program"]
    program = PROGRAMS[program]
    cpu = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = backend.amortize(program, unit["num_simulations"], unit["seed"])
    row = {"cpu": time.process_time() - cpu, "epochs": int(posterior.record["epochs"])}
    messages = {str(one.message) for one in caught if issubclass(one.category, UserWarning)}
    warnings.simplefilter("ignore")  # of data on the rim, and of Pareto k, which is kept
    plates = posterior.guide.ordered_plates
    say({"kind": "training", **row, "warnings": sorted(messages), "ordered": list(plates)})
    with np.load(unit["sets"]) as file:
        sets = [file[name] for name in file.files]
    for number, data in enumerate(sets):
        say({"kind": "draws", "set": number, **_draws(backend, program, posterior, data, unit)})
        if number < unit["num_chains_for"]:
            say({"kind": "nuts", "set": number, **_chains(backend, program, posterior, data, unit)})
    say({"kind": "check", **_check(posterior, unit)})


def _check(posterior: Any, unit: Row) -> Row:
    cpu = time.process_time()
    try:
        check = posterior.check(num_simulations=unit["num_checks"], seed=unit["seed"] + 1)
    except Exception as error:  # a failure is a result
        return {"p_values": {}, "error": f"{type(error).__name__}: {error}"}
    p_values = {name: float(value) for name, value in check.p_values().items()}
    cpu = time.process_time() - cpu
    return {"p_values": p_values, "p_value": float(check.p_value()), "cpu": cpu, "error": None}


def _draws(backend: Any, program: Program, posterior: Any, data: Any, unit: Row) -> Row:
    args = (*program.args, backend.as_data(data))
    found = posterior.sample(*args, num_samples=unit["num_draws"])
    row: Row = {"moments": moments(program, found)}
    try:
        better = posterior.refine(
            *args, num_samples=unit["num_draws"], num_proposals=unit["num_proposals"]
        )
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}"}
    return row | {
        "refined": moments(program, better),
        "pareto_k": better.pareto_k and float(better.pareto_k),
        "effective": better.effective_sample_size,
        "error": None,
    }


def _chains(backend: Any, program: Program, posterior: Any, data: Any, unit: Row) -> Row:
    args = (*program.args, backend.as_data(data))
    try:
        found = posterior.refine(*args, method="nuts", num_samples=unit["num_draws"])
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"moments": moments(program, found), "error": None}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    (references if given["kind"] == "reference" else training)(given)
