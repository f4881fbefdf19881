# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The picture of the page "Which loss do I need?": a tree whose leaves link to the losses.

Where a window is too narrow for it, the page shows the same tree as nested lists.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

ROW, BOX = 68, 56
WIDTH = 772
COLUMNS = {"first": (4, 112), "second": (158, 114), "third": (380, 102), "leaf": (522, 246)}

# Text of a question, its rows (first and last leaf below it), and what the edge to it says.
QUESTIONS = [
    ("first", "Do you want\nthe latents of\ngiven data?", (0, 7), ""),
    ("second", "What is the\nlikelihood\np(x|z)?", (0, 5), "yes"),
    ("second", "Only samples:\na critic, distance\nor encoder?", (6, 8), "no"),
    ("third", "Does the guide\nhave a\ndensity?", (0, 1), "density"),
    ("third", "Does the guide\nhave a\ndensity?", (2, 3), "deterministic"),
    ("third", "Does the guide\nhave a\ndensity?", (4, 5), "simulator"),
]

# What the edge says, the loss, what to know about it; the name of a page, or none.
LEAVES = [
    ("yes", "any stock ELBO", "you need nothing from here", None),
    ("no", "PriorContrastELBO", "or SemiImplicitELBO, a true bound", "PriorContrastELBO"),
    ("yes", "SpreadELBO", "a bound, no critic", "SpreadELBO"),
    ("no", "PriorContrastELBO(noise=...)", "an estimate, by a critic", "PriorContrastELBO"),
    ("yes", "JointContrastELBO, KL()", "exact, no critic: NPE", "JointContrastELBO"),
    ("no", "JointContrastELBO(critic)", "an estimate, by a critic", "JointContrastELBO"),
    ("critic", "AdversarialDivergence, JSPi", "or WassersteinCritic", "AdversarialDivergence"),
    ("distance", "MMD", "or EnergyDistance, SlicedWasserstein", "MMD"),
    ("encoder", "SpreadELBO", "a bound, no critic: delta-VAE", "SpreadELBO"),
]  # fmt: skip

DESCRIPTION = (
    "A decision tree. If you want the latents of given data, it depends on the likelihood and on "
    "whether the guide has a density. A likelihood with a density: a stock ELBO if the guide has a "
    "density, else PriorContrastELBO or SemiImplicitELBO. A deterministic likelihood: SpreadELBO, "
    "else PriorContrastELBO with noise. A simulator: JointContrastELBO with KL, else "
    "JointContrastELBO with a critic. If you only want samples: AdversarialDivergence or "
    "WassersteinCritic with a critic, MMD, EnergyDistance or SlicedWasserstein without, and "
    "SpreadELBO with an encoder."
)

# The colours are those of the page, so that it can be read in light and in dark.
STYLE = """
.tree text { font: 12.5px var(--font-stack, sans-serif); fill: var(--color-foreground-primary, #222); }
.tree .edge { fill: none; stroke: var(--color-foreground-muted, #777); stroke-width: 1.5; }
.tree .says { font-size: 11.5px; fill: var(--color-foreground-secondary, #555); }
.tree .box { fill: var(--color-background-secondary, #f5f5f5); stroke: var(--color-foreground-muted, #777); }
.tree .leaf .box { stroke: var(--color-brand-primary, #0a4bff); stroke-width: 1.8; }
.tree .name { font: 600 12.5px var(--font-stack--monospace, monospace); }
.tree a .name { fill: var(--color-brand-content, #2757dd); }
.tree a { text-decoration: none; }
.tree a:focus .box, .tree a:hover .box { stroke-width: 3; }
.tree-list { display: none; }
.tree-list ul { list-style: none; margin: 0.4rem 0; padding-left: 0.7rem; border-left: 2px solid var(--color-foreground-muted, #777); }
.tree-list .note, .tree-list .answer { color: var(--color-foreground-secondary, #555); }
.tree-list a, .tree-list b { overflow-wrap: anywhere; font-family: var(--font-stack--monospace, monospace); }
@media (max-width: 47.5em) { .tree { display: none; } .tree-list { display: block; } }
"""  # noqa: E501


def _middle(rows: tuple[int, int]) -> float:
    return 8 + ROW * (rows[0] + rows[1]) / 2 + BOX / 2


def _box(column: str, y: float, inner: str, kind: str) -> str:
    x, width = COLUMNS[column]
    rect = f'<rect class="box" x="{x}" y="{y - BOX / 2}" width="{width}" height="{BOX}" rx="8"/>'
    return f'<g class="{kind}">{rect}{inner}</g>'


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def _edge(start: str, y0: float, end: str, y1: float, says: str) -> list[str]:
    x0 = COLUMNS[start][0] + COLUMNS[start][1]
    x1 = COLUMNS[end][0]
    turn = x0 + 16
    path = f'<path class="edge" d="M{x0} {y0}H{turn}V{y1}H{x1}"/>'
    return [path, _text(x1 - 6, y1 - 6, says, "says", "end")]


def draw() -> str:
    """Return the picture as SVG for the text of a page, and as lists for narrow windows."""
    edges, boxes = [], []
    parents: dict[tuple[str, int], tuple[str, float]] = {}
    order = list(COLUMNS)
    for column, words, rows, says in QUESTIONS:
        y = _middle(rows)
        x, width = COLUMNS[column]
        lines = words.split("\n")
        inner = "".join(
            _text(x + width / 2, y + 4.5 + 16 * (i - (len(lines) - 1) / 2), line)
            for i, line in enumerate(lines)
        )
        boxes.append(_box(column, y, inner, "question"))
        if says:
            parent = parents[order[order.index(column) - 1], rows[0]]
            edges += _edge(*parent, column, y, says)
        for row in range(rows[0], rows[1] + 1):
            parents[column, row] = (column, y)
    for row, (says, name, note, page) in enumerate(LEAVES):
        y = _middle((row, row))
        parent = parents.get(("third", row)) or parents["second", row]
        edges += _edge(*parent, "leaf", y, says)
        x = COLUMNS["leaf"][0] + 10
        inner = _text(x, y - 4, name, "name", "start") + _text(x, y + 15, note, "says", "start")
        leaf = _box("leaf", y, inner, "leaf")
        if page:
            leaf = f'<a href="{_href(page)}" aria-label="{escape(name)}">{leaf}</a>'
        boxes.append(leaf)
    height = 16 + ROW * (len(LEAVES) - 1) + BOX
    return (
        f'<div class="tree-frame"><svg class="tree" viewBox="0 0 {WIDTH} {height}" '
        'xmlns="http://www.w3.org/2000/svg" role="group" aria-labelledby="tree-title tree-desc">'
        '<title id="tree-title">Which loss do I need?</title>'
        f'<desc id="tree-desc">{escape(DESCRIPTION)}</desc><style>{STYLE}</style>'
        + "".join(edges + boxes)
        + '</svg><div class="tree-list">'
        + _list(_branches(0, (0, len(LEAVES) - 1)))
        + "</div></div>\n"
    )


def _branches(column: int, rows: tuple[int, int]) -> list[str]:
    """The list items below a question: the questions of the next column, else leaves."""
    items = []
    row = rows[0]
    while row <= rows[1]:
        name = list(COLUMNS)[column]
        asked = [q for q in QUESTIONS if q[0] == name and q[2][0] == row]
        if asked:
            _, words, below, says = asked[0]
            below = rows if column == 0 else below  # the first question's rows say where it stands
            inner = f"{escape(' '.join(words.split()))}{_list(_branches(column + 1, below))}"
            row = below[1] + 1
        else:
            says, loss, note, page = LEAVES[row]
            link = f'<a href="{_href(page)}">{escape(loss)}</a>' if page else f"<b>{loss}</b>"
            inner = f'{link}<br><span class="note">{escape(note)}</span>'
            row += 1
        answer = f'<span class="answer">{escape(says)}:</span> ' if says else ""
        items.append(f"<li>{answer}{inner}</li>")
    return items


def _list(items: list[str]) -> str:
    return f"<ul>{''.join(items)}</ul>"


def _href(page: str) -> str:
    return f"api/pyro_spread/pyro_spread.{page}.html"


def write(path: Path) -> None:
    """Write the picture, unless the file has it."""
    text = draw()
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
