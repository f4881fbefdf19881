# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What an import brings in, and what it says when an extra is missing. Each in a fresh Python."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BLOCK = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""

TORCH, JAX = {"torch", "pyro"}, {"jax", "jaxlib", "numpyro", "optax", "flax"}
HEAVY = {"matplotlib", "sklearn", "arviz", "jinja2"}


def python(code, blocked=()):
    code = BLOCK.format(blocked=set(blocked)) + code if blocked else code
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def modules_after(statement):
    done = python(f"{statement}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("package", "wanted", "unwanted"),
    [
        ("pyro_spread", TORCH, JAX | HEAVY),
        ("numpyro_spread", {"jax", "numpyro"}, TORCH | {"flax"} | HEAVY),
        ("spread_analysis", {"numpy", "scipy"}, TORCH | JAX | HEAVY),
        ("spread_core.messages", set(), TORCH | JAX | HEAVY),
    ],
)
def test_isolation(package, wanted, unwanted):
    modules = modules_after(f"import {package}")
    assert wanted <= modules
    assert not unwanted & modules


def test_one_backend_needs_nothing_of_the_other():
    assert python("import pyro_spread", JAX | HEAVY).returncode == 0
    assert python("import numpyro_spread", TORCH | {"flax"} | HEAVY).returncode == 0
    assert python("import spread_analysis", TORCH | JAX | HEAVY).returncode == 0


@pytest.mark.parametrize(
    ("package", "missing", "extra"),
    [
        ("pyro_spread", "torch", "pyro"),
        ("pyro_spread", "pyro", "pyro"),
        ("numpyro_spread", "jax", "numpyro"),
        ("numpyro_spread", "numpyro", "numpyro"),
    ],
)
def test_missing_extra(package, missing, extra):
    done = python(f"import {package}", {missing})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert f"{package} needs the extra '{extra}'" in last
    assert f"No module named '{missing}'" in last
    assert f"pip install 'pyro-spread[{extra}]'" in last


def test_public_names_exist_and_match():
    code = """
import pyro_spread, numpyro_spread
for package in (pyro_spread, numpyro_spread):
    for name in package.__all__:
        assert getattr(package, name).__doc__
# Steps of NumPyro are compiled by jax.jit as they are.
assert [n for n in pyro_spread.__all__ if n != "compiled"] == numpyro_spread.__all__
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "package", ["pyro_spread", "numpyro_spread", "spread_core", "spread_analysis"]
)
def test_typed_marker_ships(package):
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize(
    "package", ["pyro_spread", "numpyro_spread", "spread_core", "spread_analysis"]
)
def test_files_that_are_no_python_ship(package):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"][package]
    shipped = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
    others = {path for path in (ROOT / package).rglob("*") if path.is_file()}
    assert {path for path in others if path.suffix not in (".py", ".pyc")} == shipped
