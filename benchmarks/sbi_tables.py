# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The results of ``sbi_run.py`` as tables in Markdown, beside what others published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from studies.sbi_tasks import BUDGETS, SBI_TASKS

Row = dict[str, Any]
#: Headings; our own methods come first.
TITLES = {
    "numpyro": "NumPyro",
    "pyro": "Pyro",
    "numpyro-rounds": "NumPyro, rounds",
    "pyro-rounds": "Pyro, rounds",
    "sbi-npe": "sbi NPE",
    "sbi-nsf": "sbi NPE, nsf",
    "bayesflow": "BayesFlow",
    "prior": "prior",
    "exact": "exact",
}
#: They need no library, and train nothing.
CONTROLS = ("prior", "exact")
#: They train for every observation anew.
BY_ROUNDS = ("numpyro-rounds", "pyro-rounds")
#: By budget, what the mean over the ten tasks may be.
TARGETS = {1_000: 0.79, 10_000: 0.68}
SPREAD = "standard deviation over seeds (over observations where there is one seed)"
OURS = ("numpyro", "pyro")
#: Of the CPU seconds of the better method of ``sbi``, the share that ours may need.
SHARE = {"numpyro": 1 / 3, "pyro": 1.0}


@dataclass
class Cell:
    """What one method reached on one task."""

    scores: dict[int, list[float]] = field(default_factory=dict)  # by seed, over observations
    cpu: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def mean(self) -> float:
        return float(np.mean(self.by_seed)) if self.scores else float("nan")

    @property
    def by_seed(self) -> list[float]:
        return [float(np.mean(values)) for _, values in sorted(self.scores.items())]

    @property
    def spread(self) -> float:
        """Standard deviation over seeds, or over observations if there is one seed."""
        return float(np.std(self._varied, ddof=1)) if len(self._varied) > 1 else float("nan")

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.spread / np.sqrt(max(len(self._varied), 1))

    @property
    def _varied(self) -> list[float]:
        return next(iter(self.scores.values())) if len(self.scores) == 1 else self.by_seed

    def text(self) -> str:
        failures = f" ({self.failed} failed)" if self.failed else ""
        if not self.scores:
            return failures.strip(" ()") or "–"
        return f"{_short(self.mean)} ± {_short(self.spread)}{failures}"


def tables(rows: Iterable[Row]) -> str:
    """One table of C2ST for every budget, and the comparison with ``sbi`` where it was run."""
    rows = list(rows)
    parts = []
    for budget in sorted({row["num_simulations"] for row in rows}):
        cells = collect(row for row in rows if row["num_simulations"] == budget)
        parts.append(accuracy(cells, budget))
        if any(method.startswith("sbi") for _, method in cells):
            parts.append(comparison(cells, budget))
    return "\n".join(parts)


def collect(rows: Iterable[Row]) -> dict[tuple[str, str], Cell]:
    """A cell for every task and method."""
    cells: dict[tuple[str, str], Cell] = {}
    for row in rows:
        cell = cells.setdefault((row["task"], row["method"]), Cell())
        if row["kind"] == "c2st":
            cell.scores.setdefault(row["seed"], []).append(row["c2st"])
        elif row["error"]:
            cell.failed += 1
        else:
            cell.cpu.append(row["cpu"])
    return cells


def accuracy(cells: Mapping[tuple[str, str], Cell], budget: int) -> str:
    """C2ST of every method on every task, published figures beside it, and the mean over tasks."""
    tasks = [name for name in SBI_TASKS if any(task == name for task, _ in cells)]
    methods = [method for method in TITLES if any(m == method for _, m in cells)]
    published = ("NPE", "SNPE") if budget in BUDGETS else ()
    header = ["task", *(TITLES[m] for m in methods), *(f"published {p}" for p in published)]
    lines = []
    for name in tasks:
        values = [cells.get((name, method), Cell()).text() for method in methods]
        lines.append([name, *values, *(_short(_published(name, p, budget)) for p in published)])
    if len(tasks) > 1:
        columns = [[cells.get((name, m), Cell()).mean for name in tasks] for m in methods]
        columns += [[_published(name, p, budget) for name in tasks] for p in published]
        lines.append(["mean", *(_short(float(np.mean(column))) for column in columns)])
    title = f"C2ST at {budget:,} simulations: mean over observations and seeds ± {SPREAD}"
    text = f"{title}\n\n{_markdown(header, lines)}"
    for method in methods:
        if method in OURS and published:
            text += f"\n{_verdict(cells, tasks, method, budget)}\n"
    return text


def _verdict(
    cells: Mapping[tuple[str, str], Cell], tasks: Sequence[str], method: str, budget: int
) -> str:
    done = [name for name in tasks if (name, method) in cells]
    worse = [
        name for name in done if not cells[name, method].mean <= _published(name, "NPE", budget)
    ]
    text = f"{TITLES[method]}: at most the published NPE on {len(done) - len(worse)} of {len(done)}"
    text += f" (above it: {', '.join(worse)})" if worse else ""
    if len(done) == len(SBI_TASKS) and budget in TARGETS:
        mean = float(np.mean([cells[name, method].mean for name in done]))
        met = "met" if mean <= TARGETS[budget] else "missed"
        text += f"; the mean is to be at most {_short(TARGETS[budget])}: {met}"
    return f"{text}."


def comparison(cells: Mapping[tuple[str, str], Cell], budget: int) -> str:
    """Ours and the better of the methods of ``sbi``: C2ST and CPU seconds of training."""
    compared = {task for task, method in cells if method.startswith("sbi")}
    tasks = [name for name in SBI_TASKS if name in compared]
    left_out = (*CONTROLS, *BY_ROUNDS)
    methods = [m for m in TITLES if m not in left_out and any((t, m) in cells for t in tasks)]
    header = ["task", *(f"{TITLES[m]}; CPU s" for m in methods), "against the better of sbi"]
    lines = []
    for name in tasks:
        row = [name]
        for method in methods:
            cell = cells.get((name, method), Cell())
            row.append(f"{cell.text()}; {np.mean(cell.cpu):.0f}" if cell.cpu else cell.text())
        remarks = [_against(cells, name, m) for m in methods if m in OURS and (name, m) in cells]
        lines.append([*row, "; ".join(remarks) or "–"])
    title = f"On the same {budget:,} simulations: C2ST ± {SPREAD}; CPU seconds of training"
    return f"{title}\n\n{_markdown(header, lines)}"


def _against(cells: Mapping[tuple[str, str], Cell], task: str, method: str) -> str:
    ours = cells[task, method]
    theirs = [c for (t, m), c in cells.items() if t == task and m.startswith("sbi") and c.scores]
    if not theirs or not ours.scores:
        return f"{TITLES[method]}: failed" if not ours.scores else ""
    best = min(theirs, key=lambda cell: cell.mean)
    gap = ours.mean - best.mean
    error = float(np.hypot(ours.error, best.error))
    # Of a single score the error is not known.
    margin, within = (2 * error, f"within 2 x {error:.3f}") if error >= 0 else (0.0, "by one score")
    as_good = "no worse" if gap <= margin else "worse"
    share = float(np.mean(ours.cpu) / np.mean(best.cpu))
    met = "met" if gap <= margin and share <= SHARE[method] else "missed"
    return (
        f"{TITLES[method]}: {gap:+.3f} ({as_good} {within}), {share:.2f} of its CPU seconds, {met}"
    )


def _published(task: str, method: str, budget: int) -> float:
    return SBI_TASKS[task].published[method][BUDGETS.index(budget)]


def _short(value: float) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.3f}".removeprefix("0")


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
