# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The picture of the idea: ``python docs/_ext/idea_picture.py`` draws ``docs/images/idea.svg``.

Data and model are uniform on two intervals that do not overlap. Without noise the divergence is
infinite wherever the model is; with noise it is finite and falls as the model approaches.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import norm

from spread_analysis.plots import COLOURS, INK

matplotlib.use("svg")
import matplotlib.pyplot as plt

DATA, MODEL = COLOURS[0], COLOURS[1]
WIDTH, SCALE, APART = 1.0, 0.6, 2.4
GRID = np.linspace(-6, 10, 1601)
SEEN = slice(380, 1070, 2)


def clean(centre: float) -> np.ndarray:
    """The density of a uniform distribution on an interval."""
    return np.where(np.abs(GRID - centre) < WIDTH / 2, 1 / WIDTH, 0.0)


def noisy(centre: float) -> np.ndarray:
    """The density of its samples with Gaussian noise on them."""
    # By symmetry on the right of the centre, where the upper tails keep their digits.
    away = np.abs(GRID - centre)
    return (norm.sf((away - WIDTH / 2) / SCALE) - norm.sf((away + WIDTH / 2) / SCALE)) / WIDTH


def divergence(distance: float) -> float:
    """KL[data | model] between the noisy densities, by quadrature."""
    p, q = noisy(0.0), noisy(distance)
    return float(np.trapezoid(p * np.log(p / q), GRID))


def draw() -> plt.Figure:
    """Draw the picture, with letters large enough for a telephone."""
    settings = {
        "font.family": "DejaVu Sans",
        "font.size": 14,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.titlesize": 15,
        "xtick.color": INK,
        "ytick.color": INK,
        "svg.hashsalt": "idea",
    }
    plt.rcParams.update(settings)
    figure = plt.figure(figsize=(6.4, 6.0), layout="constrained")
    above = figure.subplot_mosaic(
        [["without", "with"], ["curve", "curve"]], height_ratios=[1, 1.25]
    )

    for name, density, says in [
        ("without", clean, "no overlap:\ninfinite, no gradient"),
        ("with", noisy, "they overlap:\nfinite, with a gradient"),
    ]:
        ax = above[name]
        for label, centre, colour in [("data", 0.0, DATA), ("model", APART, MODEL)]:
            height = density(centre)
            ax.fill_between(GRID[SEEN], height[SEEN], color=colour, alpha=0.25, linewidth=0)
            ax.plot(GRID[SEEN], height[SEEN], color=colour, linewidth=2)
            ax.text(centre, 1.06 * height.max(), label, color=colour, ha="center",
                    va="bottom", weight="bold")  # fmt: skip
        ax.set(
            xlim=GRID[[SEEN.start, SEEN.stop]],
            ylim=(0, 1.32 * density(0.0).max()),
            xticks=[],
            yticks=[],
        )
        ax.set_title(f"{name} noise", weight="bold")
        ax.set_xlabel(says, labelpad=8)
        ax.spines[["top", "left", "right"]].set_visible(False)

    ax = above["curve"]
    distances = np.linspace(0, 3, 121)
    values = np.array([divergence(d) for d in distances])
    top = 1.12 * values[-1]
    ax.plot([3, 0.03], [top, top], color=INK, linewidth=2, linestyle=(0, (4, 2)))
    ax.text(2.95, 0.955 * top, "without noise: infinite until they meet", va="top")
    ax.plot(distances, values, color=COLOURS[2], linewidth=3)
    ax.text(1.5, 0.5 * top, "with noise: falls to\nzero as they meet", color=COLOURS[2],
            weight="bold", va="center")  # fmt: skip
    ax.set(xlim=(3, 0), ylim=(0, 1.06 * top), xticks=[3, 2, 1, 0])
    ax.set_yticks([0, top], ["0", "∞"])
    ax.set_xlabel("distance of model from data")
    ax.set_ylabel("divergence")
    ax.spines[["top", "right"]].set_visible(False)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12, hspace=0.06, wspace=0.06)
    return figure


if __name__ == "__main__":
    path = Path(__file__).parents[1] / "images" / "idea.svg"
    draw().savefig(path, facecolor="white", metadata={"Date": None})
