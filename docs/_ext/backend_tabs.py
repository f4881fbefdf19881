# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Cells that begin with ``# Pyro`` or ``# NumPyro`` become tabs, with what they print and draw."""

from __future__ import annotations

from docutils import nodes
from sphinx_design.shared import create_component

TABS = {"Pyro": "pyro", "NumPyro": "numpyro"}


def _backend(node: nodes.Node) -> str | None:
    """The backend that a cell names in its first line, if any."""
    if not isinstance(node, nodes.container) or node.get("nb_element") != "cell_code":
        return None
    source = next(node.findall(nodes.literal_block), None)
    first = source.astext().partition("\n")[0] if source is not None else ""
    return first[2:] if first[:2] == "# " and first[2:] in TABS else None


def _without_first_line(cell: nodes.Element) -> nodes.Element:
    block = next(cell.findall(nodes.literal_block))
    block.rawsource = block.astext().partition("\n")[2].lstrip("\n")
    block[:] = [nodes.Text(block.rawsource)]
    return cell


def _tab(name: str, cells: list[nodes.Element]) -> nodes.Element:
    label = nodes.rubric(name, name, classes=["sd-tab-label"])
    label["sync_id"], label["sync_group"] = TABS[name], "tab"
    shown = [_without_first_line(cell) for cell in cells]
    content = create_component("tab-content", classes=["sd-tab-content"], children=shown)
    return create_component(
        "tab-item", classes=["sd-tab-item"], children=[label, content], selected=False
    )


def _tab_set(cells: list[nodes.Element]) -> nodes.Element:
    tabs = []
    for name in TABS:
        if own := [cell for cell in cells if _backend(cell) == name]:
            tabs.append((name, own))
    children = [_tab(name, own) for name, own in tabs]
    return create_component("tab-set", classes=["sd-tab-set"], children=children)


def make(app, document: nodes.document) -> None:
    """Put each run of neighbouring cells of the two backends into one set of tabs."""
    parents = {cell.parent for cell in document.findall(_backend)}
    for parent in parents:
        children, run = [], []
        for child in [*parent.children, None]:
            if child is not None and _backend(child):
                run.append(child)
                continue
            if run:
                children.append(_tab_set(run))
                run = []
            if child is not None:
                children.append(child)
        parent[:] = children
