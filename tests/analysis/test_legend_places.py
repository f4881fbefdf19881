# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Legends have their place: to look for the best one takes long, and on a slow machine it warns."""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.legend import Legend

import spread_analysis as sa
from spread_analysis.report import CriticLogits, LossWords, figures

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
SIDES = RNG.normal(size=(60, 3)), RNG.normal(size=(50, 3))
WORDS = LossWords("AdversarialDivergence", "JSPi(0.5) estimate")


def history_curves():
    history = sa.History()
    history.add(1, {"divergence": 1.0, "loss": 2.0})
    return figures.history_curves(history, list(history), "nats")


def loss_curves():
    axes = sa.plot_loss_curve({"a": RNG.normal(size=50), "b": RNG.normal(size=50)})
    return figures.encode(axes.figure)


@pytest.mark.parametrize(
    "draw",
    [
        loss_curves,
        history_curves,
        lambda: figures.loss_curve(np.array([1.0, np.nan]), WORDS),
        lambda: figures.marginals(*SIDES, ["a", "b", "c"]),
        lambda: figures.scatter(*SIDES, ["a", "b", "c"]),
        lambda: figures.scatter(SIDES[0][:1], SIDES[1], ["a", "b", "c"]),  # a single datum
        lambda: figures.overlap(CriticLogits(*(side[:, 0] for side in SIDES)), WORDS),
        lambda: figures.calibration(sa.critic_report(*(side[:, 0] for side in SIDES)), ("a", "b")),
    ],
)
def test_no_figure_of_the_report_looks_for_a_place(draw, monkeypatch):
    def search(*_):
        raise AssertionError("a legend looks for the best place")

    monkeypatch.setattr(Legend, "_find_best_position", search)
    monkeypatch.setattr(figures, "_DPI", 30)
    assert draw()


def test_every_legend_in_the_repository_has_a_place():
    files = [
        path
        for folder in ("spread_analysis", "examples", "benchmarks", "docs")
        for suffix in ("py", "md")
        for path in (ROOT / folder).rglob(f"*.{suffix}")
        if "_build" not in path.parts
    ]
    calls = [
        (path.name, call)
        for path in files
        for call in re.findall(r"\.legend\(([^()]*(?:\([^()]*\)[^()]*)*)\)", path.read_text())
    ]
    assert len(calls) > 20
    assert not [found for found in calls if "loc=" not in found[1] or "best" in found[1]]
