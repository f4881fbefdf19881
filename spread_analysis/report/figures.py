# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report, each as a PNG in base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spread_analysis.arviz_export import is_new, to_arviz
from spread_analysis.critic import CriticReport
from spread_analysis.history import History
from spread_analysis.plots import (
    COLOURS,
    INK,
    plot_calibration,
    plot_loss_curve,
    plot_sample_grid,
    style_axes,
)
from spread_analysis.report.words import CriticLogits, LossWords
from spread_core.monitors import SATURATED_LOGIT
from spread_core.optional import import_extra
from spread_core.validation import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA, MODEL = COLOURS[0], COLOURS[1]
_DPI = 130
#: Columns of data of which marginals are drawn, and of latents in the pair plot.
MAX_MARGINALS, MAX_LATENTS = 6, 5
_MAX_POINTS, _MAX_IMAGES = 1000, 64


def encode(figure: Figure) -> str:
    """A figure as a PNG in base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", bbox_inches="tight")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def plain(text: str, limit: int = 40) -> str:
    """Text that matplotlib takes as it is, not too long: names of sites may hold dollars."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return text.replace("$", r"\$")


def _new(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    figure = import_extra("matplotlib.figure", "report").Figure(
        figsize=(width, height), layout="constrained"
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def _tidy(ax: Axes, xlabel: str = "", ylabel: str = "") -> None:
    style_axes(ax, xlabel, ylabel, grid="#e4e4e4")


def _legend(ax: Axes, **options: Any) -> None:
    """Names above the axes: a search for free room among the data may take long, and then warns."""
    number = len(ax.get_legend_handles_labels()[1])
    look: dict[str, Any] = {"frameon": False, "fontsize": 9, "borderaxespad": 0.2} | options
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=min(number, 2), **look)


def loss_curve(losses: FloatArray, words: LossWords) -> str:
    """The loss at every step, with outliers of the start cut off."""
    figure, axes = _new(7.4, 3.4)
    ax = plot_loss_curve(losses, ylabel=plain(words.label, 80), ax=axes[0, 0])
    finite = losses[np.isfinite(losses)]
    if finite.size >= 100:
        low, high = np.quantile(finite, [0.005, 0.995])
        margin = 0.08 * (high - low)
        if margin > 0 and (finite.max() > high + 4 * margin or finite.min() < low - 4 * margin):
            ax.set_ylim(low - margin, high + margin)
    ax.yaxis.label.set_fontsize(9)
    return encode(figure)


def history_curves(history: History, names: Sequence[str], ylabel: str) -> str:
    """Some of the numbers recorded during training, in one panel."""
    figure, axes = _new(5.2, 3.0)
    ax = axes[0, 0]
    for index, name in enumerate(names):
        steps, values = history[name]
        colour = COLOURS[index % len(COLOURS)]
        missing = int((~np.isfinite(values)).sum())
        label = plain(name) + (f" (not finite {missing} times)" if missing else "")
        shown = np.where(np.isfinite(values), values, np.nan)
        ax.plot(steps, shown, color=colour, lw=1.6, marker="o", ms=2.5, label=label)
    _tidy(ax, "step", plain(ylabel, 80))
    _legend(ax)
    return encode(figure)


def image_grid(images: FloatArray, image_shape: Sequence[int], value_range: Any) -> str:
    """A grid of images; pixels that are not finite are drawn black."""
    shown = np.nan_to_num(images[:_MAX_IMAGES], nan=value_range[0])
    shown = np.clip(shown, *value_range).reshape(-1, *image_shape)
    side = int(np.ceil(np.sqrt(len(shown))))
    figure, axes = _new(4.2, 4.2 * np.ceil(len(shown) / side) / side)
    plot_sample_grid(shown, num_columns=side, value_range=value_range, ax=axes[0, 0])
    return encode(figure)


def marginals(data: FloatArray, samples: FloatArray, columns: Sequence[str]) -> str:
    """Histograms of the first columns, data under samples."""
    number = min(len(columns), MAX_MARGINALS)
    across = min(number, 3)
    rows = -(-number // across)
    figure, axes = _new(2.6 * across + 0.6, 2.3 * rows, rows, across)
    for ax in axes.flat[number:]:
        ax.set_visible(False)
    for index, ax in zip(range(number), axes.flat, strict=False):
        sides = [_finite(side[:, index]) for side in (data, samples)]
        edges = _edges(sides)
        looks: tuple[dict[str, Any], ...] = (
            {"color": DATA, "alpha": 0.45, "label": "data"},
            {"color": MODEL, "histtype": "step", "lw": 1.8, "label": "model"},
        )
        for side, look in zip(sides, looks, strict=True):
            if side.size:
                ax.hist(side, edges, density=True, **look)
        _tidy(ax, plain(columns[index]))
        ax.set_yticks([])
        if not index:
            _legend(ax, fontsize=8)
    return encode(figure)


def scatter(data: FloatArray, samples: FloatArray, columns: Sequence[str]) -> str:
    """Both sets in the plane: of the two columns there are, or of the data's main directions."""
    sides = [side[np.isfinite(side).all(1)][:_MAX_POINTS] for side in (data, samples)]
    labels = [plain(column) for column in columns]
    if len(columns) > 2 and len(sides[0]) > 2:  # fewer data have no two directions
        centre = sides[0].mean(0)
        _, _, directions = np.linalg.svd(sides[0] - centre, full_matrices=False)
        sides = [(side - centre) @ directions[:2].T for side in sides]
        labels = ["first principal component of the data", "second"]
    figure, axes = _new(5.2, 4.4)
    ax = axes[0, 0]
    for side, colour, label in zip(sides, (DATA, MODEL), ("data", "model"), strict=True):
        size = 22 * float(np.clip(np.sqrt(200 / max(len(side), 1)), 0.3, 1.0))
        ax.scatter(side[:, 0], side[:, 1], s=size, color=colour, alpha=0.5, lw=0, label=label)
    low, high = np.quantile(np.concatenate(sides), [0.002, 0.998], axis=0)
    margin = 0.15 * np.where(high > low, high - low, 1.0)
    ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
    ax.set_ylim(low[1] - margin[1], high[1] + margin[1])
    _tidy(ax, *labels[:2])
    _legend(ax, markerscale=1.6)
    return encode(figure)


def calibration(report: CriticReport, sides: tuple[str, str]) -> str:
    """The calibration curve of a critic."""
    figure, axes = _new(4.4, 4.2)
    ax = plot_calibration(report, ax=axes[0, 0])
    ax.set_xlabel(f"critic's probability of “{plain(sides[0])}”", color=INK)
    ax.set_ylabel(f"share of “{plain(sides[0])}”", color=INK)
    return encode(figure)


def overlap(logits: CriticLogits, words: LossWords) -> str:
    """Histograms of the critic's log-ratio at data and at samples."""
    offset = np.log(words.pi / (1 - words.pi)) if words.is_classifier else 0.0
    sides = [logits.data - offset, logits.model - offset]
    weights = [logits.data_weights, logits.model_weights]
    edges = _edges(sides, 40)
    figure, axes = _new(5.6, 3.6)
    ax = axes[0, 0]
    looks: tuple[dict[str, Any], ...] = ({"alpha": 0.5}, {"histtype": "step", "lw": 1.8})
    for side, weight, name, colour, look in zip(
        sides, weights, words.sides, (DATA, MODEL), looks, strict=True
    ):
        clipped = np.clip(side, edges[0], edges[-1])
        ax.hist(
            clipped, edges, weights=weight, density=True, color=colour, label=plain(name), **look
        )
    if words.is_classifier:
        for limit in (-SATURATED_LOGIT - offset, SATURATED_LOGIT - offset):
            if edges[0] <= limit <= edges[-1]:
                ax.axvline(limit, color=INK, lw=1, ls=":")
        ax.axvline(0.0, color=INK, lw=1, ls="--")
    xlabel = "log-ratio (nats)" if words.is_classifier else "critic's score"
    _tidy(ax, xlabel, "density")
    _legend(ax)
    return encode(figure)


def pair_plot(latents: dict[str, FloatArray]) -> str:
    """ArviZ's pair plot of the first latents."""
    arviz = import_extra("arviz", "report")
    chosen: dict[str, FloatArray] = {}
    for name, draws in latents.items():
        left = MAX_LATENTS - len(chosen)
        flat = draws.reshape(len(draws), -1)[:_MAX_POINTS]
        scalar = flat.shape[1] == 1
        for index in range(min(left, flat.shape[1])):
            label = plain(name) if scalar else f"{plain(name)}[{index}]"
            chosen[label] = flat[:, index]
    finite = np.isfinite(np.stack(list(chosen.values()))).all(0)
    data = to_arviz({name: draws[finite] for name, draws in chosen.items()})
    if len(chosen) == 1:  # ArviZ wants at least two
        figure, axes = _new(4.4, 3.0)
        ((name, draws),) = chosen.items()
        axes[0, 0].hist(draws[finite], 40, color=DATA, alpha=0.6, density=True)
        _tidy(axes[0, 0], name, "density")
        return encode(figure)
    if is_new(arviz):
        figure = arviz.plot_pair(data, backend="matplotlib").viz["figure"].item()
    else:
        side = min(1.9 * len(chosen) + 0.8, 8.5)
        axes = arviz.plot_pair(
            data,
            marginals=True,
            figsize=(side, side),
            textsize=10,
            scatter_kwargs={"alpha": 0.35, "color": DATA, "s": 9},
            marginal_kwargs={"color": DATA, "plot_kwargs": {"linewidth": 1.5}},
        )
        figure = np.ravel(axes)[0].figure
    picture = encode(figure)
    import_extra("matplotlib.pyplot", "report").close(figure)  # ArviZ draws through pyplot
    return picture


def _finite(values: FloatArray) -> FloatArray:
    return values[np.isfinite(values)]


def _edges(sides: Sequence[FloatArray], bins: int = 30) -> FloatArray:
    """Bin edges around nearly all of both sides."""
    both = _finite(np.concatenate(sides))
    if not both.size:
        return np.linspace(-1, 1, bins + 1)
    low, high = np.quantile(both, [0.002, 0.998])
    if not high > low:
        return np.linspace(low - 0.5, low + 0.5, bins + 1)
    margin = 0.05 * (high - low)
    return np.linspace(low - margin, high + margin, bins + 1)
