# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of samples, reconstructions, losses and densities.

Every function draws on ``ax`` or, if it is left out, on the axes of a new figure, and returns the
axes; the figure is ``ax.figure``. New figures are made without ``pyplot``, so that no backend is
chosen and no global state is touched: save them with ``ax.figure.savefig(path)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from spread_core.optional import import_extra
from spread_core.validation import FloatArray, as_count, as_finite, as_float

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from spread_analysis.critic import CriticReport

INK = "#2b2b2b"
COLOURS = ("#1f5fa8", "#d1662a", "#2f8f5b", "#8a4fa3", "#b8860b", "#5c5c5c")


def axes_for(ax: Axes | None, figsize: tuple[float, float], caller: str) -> Axes:
    """The given axes, or those of a new figure."""
    if ax is not None:
        return ax
    figure = import_extra("matplotlib.figure", caller).Figure(figsize=figsize, layout="constrained")
    axes: Axes = figure.add_subplot()
    return axes


def style_axes(
    axes: Axes,
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
    grid: str | None = None,
) -> Axes:
    """Label axes and leave two spines of them; ``grid`` is the colour of a grid, None has none."""
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        axes.grid(True, color=grid, lw=0.6)
        axes.set_axisbelow(True)
    if title is not None:
        axes.set_title(title, fontsize=11, color=INK)
    return axes


def _as_images(value: ArrayLike, name: str) -> FloatArray:
    """Return images as ``(num, height, width, channels)`` with one or three channels."""
    images = as_finite(value, name)
    if images.ndim == 2:
        side = round(images.shape[1] ** 0.5)
        if side * side != images.shape[1]:
            raise ValueError(
                f"`{name}` has rows of {images.shape[1]} pixels, which is no square image; "
                "reshape it to (num_images, height, width)."
            )
        images = images.reshape(-1, side, side)
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = np.moveaxis(images, 1, -1)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"`{name}` must have shape (num_images, height, width), with an optional first or last "
            f"channel axis of size 1 or 3, or (num_images, num_pixels); got {np.shape(value)}."
        )
    return images


def mosaic(
    images: FloatArray, num_rows: int, num_columns: int, value_range: tuple[float, float] | None
) -> FloatArray:
    """Tile images row by row into one picture with a one-pixel frame of NaN, scaled to [0, 1]."""
    low, high = (images.min(), images.max()) if value_range is None else value_range
    if not low <= high or (value_range is not None and low == high):
        raise ValueError(f"`value_range` must be (low, high) with low < high, got {value_range}.")
    scaled = np.clip((images - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    _, height, width, channels = images.shape
    # The gap grows with the images, so that it stays visible on large ones.
    gap = max(1, round(max(height, width) / 24))
    canvas = np.full(
        (num_rows * (height + gap) + gap, num_columns * (width + gap) + gap, channels), np.nan
    )
    for index, image in enumerate(scaled):
        top = gap + (index // num_columns) * (height + gap)
        left = gap + (index % num_columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def show_image(ax: Axes, canvas: FloatArray, cmap: str) -> None:
    """Draw an array of pixels, one square each, without axes."""
    if canvas.shape[-1] == 3:
        ax.imshow(np.nan_to_num(canvas, nan=1.0), interpolation="nearest")
    else:
        # Entries of NaN are drawn transparent: gaps and unfilled cells show the background.
        ax.imshow(canvas[..., 0], cmap=cmap, vmin=0.0, vmax=1.0, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def plot_sample_grid(
    images: ArrayLike,
    *,
    num_columns: int | None = None,
    value_range: tuple[float, float] | None = (0.0, 1.0),
    title: str | None = None,
    cmap: str = "gray",
    ax: Axes | None = None,
) -> Axes:
    """Show images as one grid, filled row by row.

    :param images: Shape ``(num_images, height, width)``, with an optional channel axis of size 1 or
        3 in the first or last place, or ``(num_images, num_pixels)`` of square images.
    :param num_columns: Images per row; None makes the grid about square.
    :param value_range: Pixel values drawn as black and white, others are clipped; None takes the
        smallest and largest.
    :param title: Title of the axes.
    :param cmap: Colour map of images with one channel.
    :param ax: Axes to draw on; None makes a figure.
    :return: The axes.
    :raises ValueError: If ``images`` are not images or not finite, or another argument out of
        range.
    :raises ImportError: If matplotlib is missing.
    """
    batch = _as_images(images, "images")
    default = int(np.ceil(np.sqrt(len(batch))))
    columns = default if num_columns is None else as_count(num_columns, "num_columns")
    rows = -(-len(batch) // columns)
    canvas = mosaic(batch, rows, columns, value_range)
    height = min(12.0, 0.6 * rows + 0.4)
    axes = axes_for(ax, (height * canvas.shape[1] / canvas.shape[0], height), "plot_sample_grid")
    show_image(axes, canvas, cmap)
    if title is not None:
        axes.set_title(title, fontsize=11, color=INK)
    return axes


def plot_reconstructions(
    images: ArrayLike,
    reconstructions: ArrayLike,
    *,
    spread: ArrayLike | None = None,
    num_images: int = 10,
    value_range: tuple[float, float] | None = (0.0, 1.0),
    title: str | None = None,
    cmap: str = "gray",
    ax: Axes | None = None,
) -> Axes:
    """Show images above their reconstructions, with the spread images between them if given.

    :param images: Images in a shape that :func:`plot_sample_grid` accepts.
    :param reconstructions: Images of the same shape.
    :param spread: What the guide saw, images after noise, of the same shape; None leaves it out.
    :param num_images: How many of the first images to show, at most.
    :param value_range: Pixel values drawn as black and white; None takes smallest and largest.
    :param title: Title of the axes.
    :param cmap: Colour map of images with one channel.
    :param ax: Axes to draw on; None makes a figure.
    :return: The axes.
    :raises ValueError: If an argument holds no images or the shapes differ.
    :raises ImportError: If matplotlib is missing.
    """
    limit = as_count(num_images, "num_images")
    named = [("images", "data", images), ("reconstructions", "reconstruction", reconstructions)]
    if spread is not None:
        named.insert(1, ("spread", "spread", spread))
    batches = [_as_images(value, name) for name, _, value in named]
    for (name, _, _), batch in zip(named, batches, strict=True):
        if batch.shape != batches[0].shape:
            raise ValueError(
                f"`images` and `{name}` must have the same shape, "
                f"got {batches[0].shape} and {batch.shape}."
            )
    columns = min(limit, len(batches[0]))
    canvas = mosaic(
        np.concatenate([batch[:columns] for batch in batches]), len(batches), columns, value_range
    )
    width = min(14.0, 0.75 * columns + 1.2)
    height = (width - 1.2) * canvas.shape[0] / canvas.shape[1] + (0.4 if title else 0.1)
    axes = axes_for(ax, (width, height), "plot_reconstructions")
    show_image(axes, canvas, cmap)
    step = canvas.shape[0] / len(batches)
    axes.set_yticks(
        [step * (row + 0.5) - 0.5 for row in range(len(batches))],
        [label for _, label, _ in named],
        fontsize=9,
        color=INK,
    )
    axes.tick_params(length=0)
    if title is not None:
        axes.set_title(title, fontsize=11, color=INK)
    return axes


def plot_loss_curve(
    losses: ArrayLike | Mapping[str, ArrayLike],
    *,
    window: int | None = None,
    xlabel: str = "step",
    ylabel: str = "loss (nats)",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show one or several loss curves, each faint as recorded and strong as a running mean.

    Steps without a finite loss are left out of the line and counted in the legend, so that a stock
    ELBO that is infinite from the first step on is visible as such.

    :param losses: Losses of shape ``(num_steps,)``, or a mapping of label to such arrays.
    :param window: Steps of the running mean; None is a fiftieth of the curve.
    :param xlabel: Label of the horizontal axis.
    :param ylabel: Label of the vertical axis.
    :param title: Title of the axes.
    :param ax: Axes to draw on; None makes a figure.
    :return: The axes.
    :raises ValueError: If a curve is not a non-empty vector of numbers or ``window`` not positive.
    :raises ImportError: If matplotlib is missing.
    """
    curves: Mapping[str, ArrayLike] = losses if isinstance(losses, Mapping) else {"": losses}
    if not curves:
        raise ValueError("`losses` must hold at least one curve, got an empty mapping.")
    smoothing = None if window is None else as_count(window, "window")
    checked = {}
    for label, curve in curves.items():
        values = as_float(curve, f"losses[{label!r}]" if label else "losses")
        if values.ndim != 1 or values.size == 0:
            raise ValueError(
                f"`losses` must hold vectors of shape (num_steps,), got {values.shape}"
                + (f" for {label!r}." if label else ".")
            )
        checked[label] = values

    axes = axes_for(ax, (6.0, 3.6), "plot_loss_curve")
    for index, (label, values) in enumerate(checked.items()):
        colour = COLOURS[index % len(COLOURS)]
        finite = np.isfinite(values)
        missing = len(values) - int(finite.sum())
        if missing:
            label = f"{label} (not finite at {missing} of {len(values)} steps)".lstrip()
        width = max(1, len(values) // 50) if smoothing is None else smoothing
        steps = np.arange(1, len(values) + 1)
        if width > 1:
            axes.plot(steps, np.where(finite, values, np.nan), color=colour, alpha=0.25, lw=0.8)
        axes.plot(steps, _running_mean(values, width), color=colour, lw=1.8, label=label or None)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    return style_axes(axes, xlabel, ylabel, title, grid="#dddddd")


def _running_mean(values: FloatArray, window: int) -> FloatArray:
    """Mean over the last ``window`` finite values, NaN where the value itself is not finite."""
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    number = count[end] - count[start]
    mean = (total[end] - total[start]) / np.maximum(number, 1)
    return np.where(finite, mean, np.nan)


def plot_density_with_samples(
    samples: ArrayLike,
    log_density: Callable[[FloatArray], Any] | None = None,
    *,
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
    resolution: int = 150,
    labels: tuple[str, str] = ("$x_1$", "$x_2$"),
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show samples of a two-dimensional distribution over the contours of a density.

    :param samples: Samples of shape ``(num_samples, 2)``.
    :param log_density: Function from points of shape ``(num_points, 2)`` to unnormalised log
        densities of shape ``(num_points,)``; None shows the samples alone.
    :param limits: ``((left, right), (bottom, top))``; None takes the samples and a margin.
    :param resolution: Points of the grid per axis.
    :param labels: Labels of the axes.
    :param title: Title of the axes.
    :param ax: Axes to draw on; None makes a figure.
    :return: The axes.
    :raises ValueError: If ``samples`` or the values of ``log_density`` have the wrong shape or are
        NaN, or ``limits`` are empty.
    :raises ImportError: If matplotlib is missing.
    """
    points = as_finite(samples, "samples")
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"`samples` must have shape (num_samples, 2), got {points.shape}.")
    if limits is None:
        low, high = points.min(0), points.max(0)
        margin = 0.15 * np.where(high > low, high - low, 1.0)
        low, high = low - margin, high + margin
    else:
        bounds = as_finite(limits, "limits")
        if bounds.shape != (2, 2) or not (bounds[:, 0] < bounds[:, 1]).all():
            raise ValueError(
                f"`limits` must be ((left, right), (bottom, top)) with left < right, got {limits}."
            )
        low, high = bounds[:, 0], bounds[:, 1]
    size = as_count(resolution, "resolution", 2)

    axes = axes_for(ax, (4.6, 4.4), "plot_density_with_samples")
    if log_density is not None:
        grid_x, grid_y = np.linspace(low[0], high[0], size), np.linspace(low[1], high[1], size)
        grid = np.stack(np.meshgrid(grid_x, grid_y), axis=-1).reshape(-1, 2)
        values = as_float(log_density(grid), "log_density")
        if values.shape != (len(grid),) or np.isnan(values).any():
            raise ValueError(
                f"`log_density` must return shape {(len(grid),)}, one number per point, without "
                f"NaN; got shape {values.shape} with {int(np.isnan(values).sum())} NaN."
            )
        highest = values.max()
        if not np.isfinite(highest):
            raise ValueError("`log_density` is not finite anywhere inside the limits.")
        # Levels at 0, 1/2, 1, ... standard deviations of a Gaussian, as the drop from the peak:
        # levels of the density itself would leave the tails, where most samples lie, blank.
        radius = np.sqrt(2.0 * np.minimum(highest - values, 1e6)).reshape(size, size)
        axes.contourf(
            grid_x, grid_y, radius, levels=np.arange(0, 4, 0.5), cmap="Blues_r", vmin=-1.5, vmax=4
        )
    # Many samples are drawn smaller and fainter, so that the contours stay visible.
    crowd = np.clip(np.sqrt(200 / len(points)), 0.25, 1.0)
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=14 * crowd,
        color=COLOURS[1],
        alpha=float(0.3 + 0.6 * crowd),
        linewidths=0,
    )
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    return style_axes(axes, *labels, title)


def plot_calibration(
    report: CriticReport, *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Show how often a critic's verdict "data" is right, against how sure it was.

    On the diagonal the logits are log-ratios up to the prior log-odds, as the losses take them to
    be. The area of a point grows with the share of samples in its bin.

    :param report: Report of :func:`~spread_analysis.critic_report`.
    :param title: Title of the axes; None gives the calibration error.
    :param ax: Axes to draw on; None makes a figure.
    :return: The axes.
    :raises ImportError: If matplotlib is missing.
    """
    axes = axes_for(ax, (4.4, 4.2), "plot_calibration")
    filled = report.bin_weight > 0
    confidence, frequency = report.bin_confidence[filled], report.bin_frequency[filled]
    axes.plot([0, 1], [0, 1], color=COLOURS[5], linewidth=1, linestyle="--", zorder=1)
    axes.plot(confidence, frequency, color=COLOURS[0], linewidth=1.5, zorder=2)
    area = 20 + 180 * report.bin_weight[filled]
    axes.scatter(confidence, frequency, s=area, color=COLOURS[0], zorder=3, clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    if title is None:
        title = f"calibration error {report.expected_calibration_error:.3f}"
    return style_axes(axes, "critic's probability of data", "share of data", title)
