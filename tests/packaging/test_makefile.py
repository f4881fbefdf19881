# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the two commands of the README would run."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INDEX = "https://download.pytorch.org/whl/cpu"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def torch_line(*variables):
    """The line that installs torch, in a fresh clone."""
    command = ["make", "--dry-run", "VENV=.nowhere", *variables, "demo"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    [line] = [line for line in printed.splitlines() if line.endswith(" torch")]
    return line


def test_torch_may_come_from_another_index():
    plain = torch_line()
    assert "index" not in plain
    assert "--constraint constraints.txt" in plain
    assert torch_line(f"TORCH_INDEX={INDEX}") == plain.replace(
        "  torch", f" --extra-index-url {INDEX} torch"
    )


def test_the_readme_names_the_variable():
    assert f"make demo TORCH_INDEX={INDEX}" in (ROOT / "README.md").read_text()
