# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Fifty kills in each backend, at any moment: the run ends as the one that was never killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILLS = 50


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_killed_runs_end_bit_equal(backend, tmp_path):
    program = ROOT / "tests" / "programs" / "killed.py"
    command = [sys.executable, str(program), backend, str(tmp_path), str(KILLS), "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert sum(report["kills"].values()) >= KILLS
    # They did land inside of saving, and some left half a file behind.
    assert report["kills"]["while saving"] >= KILLS // 4
    assert report["kills"]["half a file"] >= 4
    assert report["leftovers"] > 0
    assert report["runs"] >= 2
    assert all(report["equal"]), report
