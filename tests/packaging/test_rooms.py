# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Arrows between the packages point one way, and no two modules import each other."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each may import those that it names.
ROOMS = {
    "spread_core": set(),
    "spread_analysis": {"spread_core"},
    "pyro_spread": {"spread_core", "spread_analysis"},
    "numpyro_spread": {"spread_core", "spread_analysis"},
    "examples/studies": {"spread_core", "spread_analysis", "studies"},
    "examples/pyro": {"spread_analysis", "pyro_spread", "studies"},
    "examples/numpyro": {"spread_analysis", "numpyro_spread", "studies"},
}
OURS = {"spread_core", "spread_analysis", "pyro_spread", "numpyro_spread", "studies"}
BACKENDS = {"torch", "pyro", "jax", "numpyro", "flax", "optax", "equinox"}


def modules(room):
    """Dotted name to path of every module in a room."""
    found = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imported(tree, top_level=False):
    """Names of modules, and of what is imported from them as if it were one."""
    nodes = tree.body if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an arrow leads"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_one_way(room):
    paths = modules(room)
    assert paths
    allowed = ROOMS[room] | {room}
    for name, path in paths.items():
        tops = {each.partition(".")[0] for each in imported(ast.parse(path.read_text()))}
        assert tops & OURS <= allowed, f"{name} imports {tops & OURS - allowed}"


@pytest.mark.parametrize("room", ["spread_core", "spread_analysis", "examples/studies"])
def test_what_is_shared_knows_no_backend(room):
    for name, path in modules(room).items():
        tops = {each.partition(".")[0] for each in imported(ast.parse(path.read_text()))}
        assert not tops & BACKENDS, name


def test_the_core_needs_what_the_base_package_brings():
    allowed = sys.stdlib_module_names | {"array_api_compat", "numpy", "scipy", "spread_core"}
    for name, path in modules("spread_core").items():
        tops = {each.partition(".")[0] for each in imported(ast.parse(path.read_text()))}
        assert tops <= allowed, f"{name} imports {tops - allowed}"


@pytest.mark.parametrize(
    "room", ["spread_core", "spread_analysis", "pyro_spread", "numpyro_spread"]
)
def test_no_circles(room):
    paths = modules(room)
    graph = {}
    for name, path in paths.items():
        wanted = imported(ast.parse(path.read_text()), top_level=True)
        hits = {each if each in paths else each.rpartition(".")[0] for each in wanted}
        graph[name] = {each for each in hits if each in paths and each != name}
    TopologicalSorter(graph).prepare()  # raises CycleError


def foreign_private_names(room, known):
    """Underscored names of our modules that a module of another folder imports or reads."""
    for name, path in modules(room).items():
        tree, bound = ast.parse(path.read_text()), {}
        for node in ast.walk(tree):
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                full = f"{node.module}.{alias.name}"
                if full in known:  # a module, whatever its name: what it holds is looked at below
                    bound[alias.asname or alias.name] = known[full]
                elif is_private(alias.name) and is_elsewhere(known.get(node.module), path):
                    yield f"{name} imports {full}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                home = bound.get(node.value.id)
                if is_private(node.attr) and is_elsewhere(home, path):
                    yield f"{name} reads {node.value.id}.{node.attr}"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def is_elsewhere(home, path):
    return home is not None and home.parent != path.parent


@pytest.mark.parametrize("room", ROOMS)
def test_underscored_names_stay_in_their_folder(room):
    known = {name: path for each in ROOMS for name, path in modules(each).items()}
    assert not list(foreign_private_names(room, known))
