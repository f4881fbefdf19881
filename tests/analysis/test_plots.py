# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Plots: what is drawn, where, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import spread_analysis as sa

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(7, 8, 8))
SAMPLES = RNG.standard_normal((50, 2))


def log_normal(points):
    return -0.5 * np.square(points).sum(1)


PLOTS = {
    "sample_grid": lambda ax=None, **kw: sa.plot_sample_grid(IMAGES, ax=ax, **kw),
    "reconstructions": lambda ax=None, **kw: sa.plot_reconstructions(
        IMAGES, IMAGES, spread=IMAGES, ax=ax, **kw
    ),
    "loss_curve": lambda ax=None, **kw: sa.plot_loss_curve(
        {"a": [3.0, 2.0], "b": [1.0, 2.0]}, ax=ax, **kw
    ),
    "density_with_samples": lambda ax=None, **kw: sa.plot_density_with_samples(
        SAMPLES, log_normal, ax=ax, **kw
    ),
}


def render(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


@pytest.mark.parametrize("name", PLOTS)
def test_a_new_figure_has_one_axes_and_is_not_blank(name):
    axes = PLOTS[name](title="a title")
    assert axes.figure.axes == [axes]
    assert axes.get_title() == "a title"
    pixels = render(axes.figure)
    ink = (pixels != 255).any(-1)
    assert ink.mean() > 0.02
    # Something is drawn in every quarter of the picture, not in a corner of it.
    rows, columns = (size // 2 for size in ink.shape)
    for part in (
        ink[:rows, :columns],
        ink[rows:, :columns],
        ink[:rows, columns:],
        ink[rows:, columns:],
    ):
        assert part.any()


@pytest.mark.parametrize("name", PLOTS)
def test_given_axes_are_used(name):
    figure = Figure()
    first, second = figure.subplots(1, 2)
    assert PLOTS[name](ax=second) is second
    assert second.has_data()
    assert not first.has_data()
    assert len(figure.axes) == 2


@pytest.mark.parametrize("name", PLOTS)
def test_saves_to_a_file(name, tmp_path):
    path = tmp_path / "picture.png"
    PLOTS[name]().figure.savefig(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_sample_grid_places_every_image():
    images = np.arange(5)[:, None, None] / 4 * np.ones((5, 4, 4))
    axes = sa.plot_sample_grid(images, num_columns=3)
    canvas = np.ma.filled(axes.images[0].get_array(), np.nan)
    # 2 x 3 cells of 4 pixels with gaps of one.
    assert canvas.shape == (11, 16)
    centres = canvas[2::5, 2::5][:2, :3]
    np.testing.assert_array_equal(centres, [[0.0, 0.25, 0.5], [0.75, 1.0, np.nan]])


def test_sample_grid_range():
    images = np.array([-1.0, 0.0, 3.0])[:, None, None] * np.ones((3, 2, 2))

    def centres(**keywords):
        canvas = sa.plot_sample_grid(images, num_columns=3, **keywords).images[0].get_array()
        return np.ma.filled(canvas, np.nan)[1, 1::3]

    np.testing.assert_array_equal(centres(), [0.0, 0.0, 1.0])
    np.testing.assert_array_equal(centres(value_range=None), [0.0, 0.25, 1.0])
    np.testing.assert_array_equal(centres(value_range=(-1.0, 1.0)), [0.0, 0.5, 1.0])
    sa.plot_sample_grid(np.zeros((2, 4)), value_range=None)  # a constant is no division by zero


@pytest.mark.parametrize(
    "shape", [(3, 16), (3, 4, 4), (3, 4, 4, 1), (3, 1, 4, 4), (3, 4, 4, 3), (3, 3, 4, 4)]
)
def test_image_layouts(shape):
    axes = sa.plot_sample_grid(RNG.uniform(size=shape), num_columns=3)
    channels = 3 if shape.count(3) == 2 else 1
    expected = (6, 16) if channels == 1 else (6, 16, 3)
    assert axes.images[0].get_array().shape == expected


def test_channels_first_and_last_are_the_same_picture():
    images = RNG.uniform(size=(2, 5, 6, 3))
    last, first = (
        sa.plot_sample_grid(value).images[0].get_array()
        for value in (images, np.moveaxis(images, -1, 1))
    )
    np.testing.assert_array_equal(last, first)


def test_reconstructions_are_labelled_rows():
    axes = sa.plot_reconstructions(IMAGES, 0.5 * IMAGES, spread=0 * IMAGES, num_images=4)
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "data",
        "spread",
        "reconstruction",
    ]
    canvas = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert canvas.shape == (28, 37)
    np.testing.assert_allclose(canvas[1:9, 1:9], IMAGES[0])
    np.testing.assert_allclose(canvas[10:18, 10:18], 0.0)
    np.testing.assert_allclose(canvas[19:27, 28:36], 0.5 * IMAGES[3])
    assert len(sa.plot_reconstructions(IMAGES, IMAGES).get_yticklabels()) == 2


def test_loss_curve_is_the_running_mean():
    values = RNG.standard_normal(100)
    raw, smooth = sa.plot_loss_curve(values, window=10).lines
    np.testing.assert_array_equal(raw.get_ydata(), values)
    expected = [values[max(0, t - 9) : t + 1].mean() for t in range(100)]
    np.testing.assert_allclose(smooth.get_ydata(), expected, rtol=0, atol=1e-13)
    assert sa.plot_loss_curve(values).get_legend() is None
    assert len(sa.plot_loss_curve([1.0, 2.0]).lines) == 1


def test_loss_curve_says_where_it_is_not_finite():
    values = [np.inf, 2.0, np.nan, 4.0]
    axes = sa.plot_loss_curve({"good": [1.0, 2.0], "stock": values}, window=2)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["good", "stock (not finite at 2 of 4 steps)"]
    np.testing.assert_array_equal(axes.lines[-1].get_ydata(), [np.nan, 2.0, np.nan, 4.0])
    render(sa.plot_loss_curve(np.full(3, np.inf)).figure)


def test_density_is_evaluated_on_the_limits():
    seen = []

    def log_density(points):
        seen.append(points)
        return log_normal(points)

    axes = sa.plot_density_with_samples(
        SAMPLES, log_density, limits=((-2, 3), (-1, 1)), resolution=20, labels=("a", "b")
    )
    (grid,) = seen
    assert grid.shape == (400, 2)
    np.testing.assert_array_equal([grid.min(0), grid.max(0)], [[-2, -1], [3, 1]])
    assert (axes.get_xlim(), axes.get_ylim()) == ((-2, 3), (-1, 1))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("a", "b")
    np.testing.assert_array_equal(axes.collections[-1].get_offsets(), SAMPLES)


def test_density_survives_huge_log_values_and_zero_density():
    def log_density(points):
        return np.where(points[:, 0] > 0, -1e5 - points[:, 0], -np.inf)

    pixels = render(sa.plot_density_with_samples(SAMPLES, log_density).figure)
    assert (pixels != 255).any()
    only = sa.plot_density_with_samples(np.ones((3, 2)))
    assert only.get_xlim()[0] < 1 < only.get_xlim()[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sa.plot_sample_grid(np.ones((2, 5))), "rows of 5 pixels, which is no square"),
        (lambda: sa.plot_sample_grid(np.ones(4)), r"`images` must have shape .*got \(4,\)"),
        (lambda: sa.plot_sample_grid(np.ones((2, 4, 4, 2))), r"got \(2, 4, 4, 2\)"),
        (lambda: sa.plot_sample_grid(np.ones((0, 4, 4))), r"got \(0, 4, 4\)"),
        (lambda: sa.plot_sample_grid(np.full((1, 2, 2), np.nan)), "`images` must be finite"),
        (lambda: sa.plot_sample_grid(IMAGES, num_columns=0), "`num_columns` must be an integer"),
        (lambda: sa.plot_sample_grid(IMAGES, value_range=(1, 0)), "`value_range` must be"),
        (
            lambda: sa.plot_reconstructions(IMAGES, IMAGES[:3]),
            "`images` and `reconstructions` must have the same shape",
        ),
        (lambda: sa.plot_reconstructions(IMAGES, IMAGES, spread=np.ones(3)), "`spread` must have"),
        (lambda: sa.plot_reconstructions(IMAGES, IMAGES, num_images=0), "`num_images` must be"),
        (lambda: sa.plot_loss_curve([]), r"`losses` must hold vectors .*got \(0,\)"),
        (lambda: sa.plot_loss_curve({}), "got an empty mapping"),
        (lambda: sa.plot_loss_curve({"a": [[1.0]]}), r"got \(1, 1\) for 'a'"),
        (lambda: sa.plot_loss_curve([1.0], window=0), "`window` must be an integer"),
        (lambda: sa.plot_density_with_samples(np.ones((3, 3))), r"`samples` must have shape"),
        (
            lambda: sa.plot_density_with_samples(SAMPLES, limits=((1, 0), (0, 1))),
            "`limits` must be",
        ),
        (
            lambda: sa.plot_density_with_samples(SAMPLES, lambda z: z, resolution=3),
            r"`log_density` must return shape \(9,\)",
        ),
        (
            lambda: sa.plot_density_with_samples(SAMPLES, lambda z: np.full(len(z), -np.inf)),
            "`log_density` is not finite anywhere",
        ),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pyplot_is_never_touched():
    code = (
        "import sys, numpy as np, spread_analysis as sa\n"
        "sa.plot_loss_curve([1.0, 2.0]); sa.plot_sample_grid(np.zeros((4, 2, 2)))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
