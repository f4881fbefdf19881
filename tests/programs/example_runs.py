# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Run an example as a user would, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_example(
    name: str, backend: str, output: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """The finished program, which must have succeeded; its files are in ``output``."""
    script = ROOT / "examples" / backend / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), "--output", str(output), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def summary(output: Path) -> Any:
    """What the program wrote beside its pictures."""
    return json.loads((output / "summary.json").read_text())
