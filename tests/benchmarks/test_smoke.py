# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run from end to end. No time is asserted: timings never fail a test."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
REPORT_KEYS = {
    *("smoke", "seed", "threads", "cores", "machine", "load_average", "seconds", "versions"),
    "rows",
}
ROW_KEYS = {
    *("part", "backend", "case", "what", "unit", "median", "p10", "p90", "repetitions"),
    *("target", "met"),
}
PARTS = {
    "pyro": {"a", "c", "d", "e", "f", "h", "i", "j", "k", "l", "m"},
    "numpyro": {"a", "b", "d", "e", "g", "h", "i", "j", "k", "l"},
}
REQUIRES = {"pyro": ("torch", "pyro"), "numpyro": ("jax", "numpyro", "flax", "optax")}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke_run_writes_every_key(backend, tmp_path):
    for module in REQUIRES[backend]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--smoke", "--backend", backend]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=BENCHMARKS.parent,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "benchmarks.json").read_text())
    assert set(report) == REPORT_KEYS
    assert report["smoke"] is True
    rows = report["rows"]
    assert all(set(row) == ROW_KEYS for row in rows)
    assert {part for row in rows for part in row["part"].split(",")} == PARTS[backend]
    assert all(row["median"] > 0 for row in rows if row["unit"] in ("ratio", "ms"))
    for part in PARTS[backend] - {"d", "h", "j"}:
        assert any(row["part"] == part and row["target"] is not None for row in rows)
    assert (tmp_path / "benchmarks.txt").read_text().strip() in done.stdout
    left_out = backend == "pyro" and importlib.util.find_spec("sbi") is None
    assert ("sbi is not installed" in done.stdout) == left_out


def test_unknown_part_is_refused(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--only", "z"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "choose from a, b, c, d, e, f, g, h, i, j, k, l" in done.stderr
    assert not (tmp_path / "out").exists()
