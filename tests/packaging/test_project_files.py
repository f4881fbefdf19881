# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Files that other programs read: they parse, and agree with pyproject.toml and the Makefile."""

import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(path):
    if not (ROOT / path).exists():  # an sdist has only some of them
        pytest.skip(f"there is no {path} here")
    return yaml.safe_load((ROOT / path).read_text())


def test_the_citation_names_this_version():
    citation = read("CITATION.cff")
    assert citation["title"] == PROJECT["name"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_ci_covers_every_python_that_the_classifiers_name():
    [job] = read(".github/workflows/ci.yml")["jobs"].values()
    claimed = [name.split()[-1] for name in PROJECT["classifiers"] if "Python :: 3." in name]
    assert job["strategy"]["matrix"]["python"] == claimed
    assert job["steps"][-1]["run"] == ".ci/run"


def test_hooks_are_targets_of_the_makefile():
    [local] = read(".pre-commit-config.yaml")["repos"]
    makefile = (ROOT / "Makefile").read_text()
    for hook in local["hooks"]:
        make, target = hook["entry"].split()
        assert make == "make"
        assert f"\n{target}:" in makefile


def test_issue_forms_ask_for_what_is_needed():
    form = read(".github/ISSUE_TEMPLATE/bug.yml")
    asked = {part["id"] for part in form["body"] if part.get("validations", {}).get("required")}
    assert asked == {"backend", "program", "result", "versions"}
    assert "blank_issues_enabled" in read(".github/ISSUE_TEMPLATE/config.yml")
