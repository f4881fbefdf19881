# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Part l: what ``Simulator`` adds to the function that it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import numpy as np
from harness import Contestant, Row

#: Runs of one draw.
BATCH = 1000
#: Milliseconds that a draw may take beyond the function.
TARGET = 1.0
_RESULT = np.zeros((BATCH, 1), np.float32)


def empty(rng: np.random.Generator, theta: Any) -> Any:
    """All runs at once, with nothing to do."""
    return _RESULT


def empty_row(rng: np.random.Generator, theta: Any) -> Any:
    """One run, with nothing to do."""
    return _RESULT[0]


def rows(backend: str, drawing: dict[str, Callable[[], Any]], smoke: bool, seed: int) -> list[Row]:
    """
    Milliseconds of a draw beyond those of the function, within each repetition.

    :param backend: its name.
    :param drawing: from a way of drawing to a function that draws and waits; those that end in
        ``"row by row"`` call :func:`empty_row`, and have no target.
    """
    rng, theta = np.random.default_rng(seed), np.zeros(BATCH, np.float32)

    def at_once() -> None:
        empty(rng, theta)

    def by_row() -> None:
        for row in theta:
            empty_row(rng, row)

    calls = {"fn": at_once, "fn row by row": by_row} | drawing
    contestants = {name: _repeated(call) for name, call in calls.items()}
    times = harness.interleave(contestants, 3 if smoke else 60, 1 if smoke else 5, seed)
    case = f"empty function, {BATCH} runs"
    measured = []
    for name in drawing:
        slow = name.endswith("row by row")
        plain = times["fn row by row" if slow else "fn"]
        beyond = [a - b for a, b in zip(times[name], plain, strict=True)]
        target = None if slow else TARGET
        what = f"{name}, beyond fn"
        measured.append(
            harness.row("l", backend, case, what, "ms", harness.summarise(beyond), target)
        )
    return measured


def _repeated(call: Callable[[], Any]) -> Contestant:
    def run(steps: int) -> None:
        for _ in range(steps):
            call()

    return run
