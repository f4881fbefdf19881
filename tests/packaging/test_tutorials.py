# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Tutorials run when the site is built; here it is checked that there is something to run."""

import ast
import re
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
PAGES = sorted(page for page in TUTORIALS.glob("*.md") if page.stem != "index")


def cells(page, tag=""):
    """The programs of the page's code cells, those with a tag if there is one."""
    for cell in re.findall(r"```\{code-cell\} ipython3\n(.*?)```", page.read_text(), re.DOTALL):
        options, _, code = cell.partition("\n\n") if cell.startswith(":") else ("", "", cell)
        if tag in options:
            yield code


def names(page):
    """What the cells of a page import, and from where."""
    for code in cells(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_both_backends_are_run(page):
    modules = {module for module, _ in names(page)}
    assert {"pyro_spread", "numpyro_spread", "pyro.infer", "numpyro.infer"} <= modules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_only_public_names_are_used(page):
    imported = [
        f"{module}.{name}"
        for module, name in names(page)
        if module.split(".")[0].endswith("spread")
    ]
    assert imported
    assert not [name for name in imported if any(part.startswith("_") for part in name.split("."))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_wrong_result_fails_the_build(page):
    checks = [code for code in cells(page, "remove-cell") if "assert" in code]
    assert len(checks) >= 2  # one for each backend


def test_all_are_listed():
    listed = (TUTORIALS / "index.md").read_text()
    assert len(PAGES) == 8
    for page in PAGES:
        assert re.search(rf"^{page.stem}$", listed, re.MULTILINE), page.stem
        assert f"thumbnails/{page.stem}.png" in listed
        assert (TUTORIALS / "thumbnails" / f"{page.stem}.png").exists()
