# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The page of a report: complete in itself, escaped, and with the numbers of the metrics."""

import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from page_reader import Page, read_page

from spread_analysis import (
    History,
    SupportMismatchMonitor,
    SupportMismatchWarning,
    frechet_distance,
    mmd2,
    precision_recall,
)
from spread_analysis.report import (
    NOT_A_BOUND,
    CriticLogits,
    LossWords,
    Report,
    write_report,
)
from spread_analysis.report.content import compute_metrics
from spread_analysis.report.gather import (
    Options,
    as_warnings,
    monitor_warnings,
    pool_latents,
    rows_of,
)
from spread_analysis.report.page import write_text
from spread_analysis.report.words import figures_of, number, shorten
from spread_core.monitors import ClampMonitor, LogitRangeMonitor

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)> $\\frac$'


def make(path=Path("run.html"), **changes):
    rng = np.random.default_rng(0)
    told = {
        "title": "a run",
        "words": LossWords("AdversarialDivergence", "JSPi(0.5) estimate", is_divergence=True),
        "value": 0.25,
        "data": {"x": rng.normal(size=(60, 2))},
        "samples": {"x": rng.normal(size=(50, 2)) + 1},
        "path": path,
    }
    return Report(**told | changes)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr("spread_analysis.report.figures._DPI", 30)


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take time; what is drawn elsewhere need not be drawn here."""
    for name in (
        "loss_curve",
        "history_curves",
        "image_grid",
        "marginals",
        "scatter",
        "calibration",
        "overlap",
        "pair_plot",
    ):
        monkeypatch.setattr(f"spread_analysis.report.figures.{name}", lambda *_, n=name: n)


def text(report, tmp_path):
    report.path = tmp_path / "run.html"
    write_report(report)
    return read_page(report.path)


def test_the_numbers_are_those_of_the_metrics(monkeypatch):
    monkeypatch.setattr("spread_analysis.report.content._LEAST_C2ST_SAMPLES", 30)
    monkeypatch.setattr("spread_analysis.report.content.c2st", frechet_distance)  # seconds less
    report = make()
    rows = {row.name: row for row in compute_metrics(report)}
    data, samples = report.data["x"][:30], report.samples["x"][:30]
    others = report.data["x"][30:]
    assert rows["MMD²"].model == mmd2(data, samples)
    assert rows["Fréchet distance"].model == frechet_distance(data, samples)
    assert rows["Fréchet distance"].perfect == frechet_distance(data, others)
    assert (rows["precision"].model, rows["recall"].model) == precision_recall(data, samples)
    assert rows["C2ST"].model == frechet_distance(data, samples)


def test_few_data_are_not_split_and_many_dims_have_no_c2st():
    rng = np.random.default_rng(0)
    report = make(data={"x": rng.normal(size=(30, 11))}, samples={"x": rng.normal(size=(30, 11))})
    rows = {row.name: row for row in compute_metrics(report)}
    assert "C2ST" not in rows
    assert rows["MMD²"].model == mmd2(report.data["x"], report.samples["x"])
    assert math.isnan(rows["MMD²"].perfect)


def test_nan_is_shown_as_such(tmp_path, no_pictures):
    report = make(value=float("nan"), losses=np.array([1.0, np.nan, np.inf]))
    report.samples["x"][7] = np.nan
    report.logits = {"": CriticLogits(np.array([0.0, np.nan]), np.zeros(3))}
    found = text(report, tmp_path)
    assert all(math.isnan(row.model) for row in report.metrics)
    assert found.sections["metrics"].count("NaN") == 4
    assert "1 of 50 samples are not finite" in found.sections["samples"]
    assert "1 of 5 logits are not finite" in found.sections["calibration"]
    assert "mean of the last 1: ∞" in found.sections["curves"]
    assert "<b>NaN</b>" in found.raw


def test_figures_survive_values_that_are_not_finite(tmp_path):
    report = make(losses=np.full(3, np.nan), history=History())
    report.history.add(1, {"divergence": np.nan})
    report.samples["x"][:] = np.inf
    found = text(report, tmp_path)
    assert "not drawn" not in found.sections["curves"]
    assert len(found.pictures["curves"]) == 2
    assert found.pictures["samples"]


def test_everything_is_escaped(tmp_path):
    report = make(
        title=HOSTILE,
        words=LossWords(HOSTILE, HOSTILE, sides=(HOSTILE, HOSTILE)),
        data={HOSTILE: np.random.default_rng(0).normal(size=(40, 1))},
        samples={HOSTILE: np.random.default_rng(1).normal(size=(40, 1))},
        logits={HOSTILE: CriticLogits(np.zeros(3), np.zeros(3))},
        latents={HOSTILE: np.random.default_rng(2).normal(size=(40, 1))},
        latents_of=HOSTILE,
        settings={HOSTILE: {HOSTILE: HOSTILE}},
        warnings=[HOSTILE],
        history=History(),
    )
    report.history.add(1, {HOSTILE: 1.0})
    found = text(report, tmp_path)
    assert found.title == HOSTILE
    assert found.raw.count("<img") == sum(map(len, found.pictures.values()))
    assert "evil.example" in found.sections["warnings"]
    assert "not drawn" not in found.raw


def test_the_reader_would_notice():
    with pytest.raises(AssertionError):
        Page("<section id='a'><p></section>")
    assert Page('<p onclick="f()"></p>').handlers


def test_images_are_shown_as_a_grid(tmp_path, no_pictures):
    rng = np.random.default_rng(0)
    images = {"label": rng.random((40, 1)), "x": rng.random((40, 4, 4))}
    report = make(data=images, samples=images, image_shape=(4, 4))
    found = text(report, tmp_path)
    assert [p.removeprefix("data:image/png;base64,") for p in found.pictures["samples"]] == [
        "image_grid",
        "image_grid",
    ]
    assert report.image_site == "x"


def test_caution_is_said(tmp_path, no_pictures):
    words = LossWords("Own", "minus the bound", caution=NOT_A_BOUND)
    found = text(make(words=words), tmp_path)
    assert "estimate, not a bound" in found.sections["curves"]
    assert "estimate, not a bound" in found.raw.split("<nav>")[0]


def test_what_the_model_minimises_instead_is_said(tmp_path, no_pictures):
    words = LossWords("Own", "total variation, at least", "", follows="no divergence")
    found = text(make(words=words), tmp_path)
    assert "Own reports is not what the model minimises: that is no divergence." in found.raw
    assert "at least, not what the model minimises" in found.raw.split("<nav>")[0]


def test_supports_apart_are_an_alarm(tmp_path, no_pictures):
    report = make(logits={"": CriticLogits(np.full(50, 20.0), np.full(50, -20.0))})
    found = text(report, tmp_path)
    assert "no common support" in found.sections["overlap"]
    report.logits = {"": CriticLogits(np.zeros(50), np.zeros(50))}
    assert "no common support" not in text(report, tmp_path).sections["overlap"]


def test_a_page_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "run.html"
    target.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match=r"cannot write '.*run.html': No space left on device"):
        write_text(target, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["run.html"]
    assert target.read_text() == "old"


def options(path, **changes):
    told = {
        "path": path,
        "losses": None,
        "history": None,
        "num_samples": 10,
        "image_shape": None,
        "title": None,
        "settings": None,
        "warnings": (),
        "datum": None,
        "seed": 0,
    }
    return Options(**told | changes)


def test_arguments_are_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder does not exist"):
        options(tmp_path / "no" / "run.html")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        options(tmp_path)
    page = tmp_path / "run.html"
    with pytest.raises(ValueError, match=r"one number per step.*\(2, 1\)"):
        options(page, losses=[[1.0], [2.0]])
    with pytest.raises(ValueError, match="vector that is not empty"):
        options(page, losses=[])
    with pytest.raises(TypeError, match=r"must be a spread_analysis\.History"):
        options(page, history={"loss": [1.0]})
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 2"):
        options(page, num_samples=1)
    assert options(page, losses=[1, 2]).losses.tolist() == [1.0, 2.0]


def test_rows_of_masked_values():
    value = np.arange(6.0).reshape(3, 2)
    assert rows_of(value, 1).shape == (3, 2)
    assert rows_of(value, 0).shape == (6,)
    mask = np.array([[True, True], [False, False], [True, False]])
    np.testing.assert_array_equal(rows_of(value, 1, mask), [[0.0, 1.0], [4.0, 0.0]])


def test_latents_that_belong_together():
    runs = [{"w": (np.full((), r), 0), "z": (np.arange(3.0) + 10 * r, 0)} for r in range(4)]
    latents, told = pool_latents(runs, ["w"], None)
    assert told == "4 draws for datum 0"
    np.testing.assert_array_equal(latents["w"], range(4))
    np.testing.assert_array_equal(latents["z"], [0.0, 10.0, 20.0, 30.0])
    latents, told = pool_latents(runs, ["w"], 2)
    np.testing.assert_array_equal(latents["z"], [2.0, 12.0, 22.0, 32.0])
    only_local = [{"z": run["z"]} for run in runs]
    assert pool_latents(only_local, [], None)[0]["z"].shape == (12,)
    assert pool_latents([{}], [], None) == ({}, "")
    with pytest.raises(ValueError, match="datum=3 is not one of the 3 data"):
        pool_latents(runs, ["w"], 3)
    for without in ([{"w": run["w"]} for run in runs], [{}], []):
        with pytest.raises(ValueError, match="datum=0, but the guide has no latent of single data"):
            pool_latents(without, ["w"], 0)


def test_warnings_are_told_once_and_monitors_are_asked():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn("twice", UserWarning, stacklevel=1)
    assert as_warnings([*caught, "plain"]) == ["UserWarning: twice", "plain"]
    monitor = SupportMismatchMonitor(patience=1)
    assert monitor_warnings([monitor]) == []
    with pytest.warns(SupportMismatchWarning):
        monitor.observe(1.0, 1.0)
    assert monitor_warnings([monitor])[0].startswith("SupportMismatchWarning: ")
    clamp, span = ClampMonitor(upper=0.7, patience=1), LogitRangeMonitor(patience=1)
    with pytest.warns(UserWarning, match="outside of its range"):
        clamp.observe(-0.1)
    with pytest.warns(UserWarning, match="between 0 and 1"):
        span.observe(0.2, 0.9)
    said = monitor_warnings([clamp, span])
    assert "now -0.1 nats, and is reported as the nearest value in [0, 0.7]" in said[0]
    assert "between 0 and 1, on both sides" in said[1]
    again = ClampMonitor(upper=0.7)  # as from a checkpoint, which keeps no value
    again.set_state(clamp.get_state())
    assert "for many steps and is reported" in monitor_warnings([again])[0]


def test_settings_do_not_change_from_run_to_run():
    assert shorten(lambda x: x).startswith("function test_settings")
    assert "0x" not in shorten(SimpleNamespace(a=object()))
    assert shorten("x" * 500).endswith("…")
    assert "\n" not in shorten(np.zeros((5, 5)))


def test_figures_of_a_critic():
    words = LossWords("A", "JS", is_divergence=True, pi=0.5)
    even = CriticLogits(np.array([1.0, -1.0]), np.array([1.0, -1.0]))
    numbers = figures_of(words, 0.1, {"": even, "z": even})
    assert numbers["divergence"] == numbers["loss"] == 0.1
    assert numbers["critic_accuracy"] == numbers["critic_accuracy/z"] == 0.5
    assert numbers["log_ratio_gap"] == 0.0
    assert numbers["critic_divergence"] < 0
    weighted = CriticLogits.of(
        SimpleNamespace(
            data=np.array([1.0, -1.0]),
            model=np.array([-1.0]),
            data_weights=np.array([1.0, 0.0]),
            model_weights=None,
        )
    )
    assert figures_of(words, 0.1, {"": weighted})["critic_accuracy"] == 1.0
    assert figures_of(words, 0.1, {"": weighted})["log_ratio_gap"] == 2.0
    score = LossWords("W", "score", is_divergence=True, is_classifier=False)
    assert figures_of(score, 0.1, {"": even}) == {"loss": 0.1, "divergence": 0.1}
    bad = CriticLogits(np.array([np.nan]), np.zeros(1))
    assert math.isnan(figures_of(words, 0.1, {"": bad})["critic_accuracy"])


def test_numbers_as_the_page_shows_them():
    shown = [number(v) for v in (0.123456, -2.0, float("nan"), -math.inf)]
    assert shown == ["0.1235", "−2", "NaN", "−∞"]


def test_history_refuses_what_is_out_of_order_or_no_number():
    history = History()
    history.add(10, {"a": 1.0})
    with pytest.raises(ValueError, match="'a' was taken in at step 10 already, so step 9"):
        history.add(9, {"b": 2.0, "a": 1.0})
    with pytest.raises(ValueError, match="'a' must be a number, got 'x'"):
        history.add(11, {"b": 2.0, "a": "x"})
    assert list(history) == ["a"]  # nothing of a refused step was taken in
    history.add(20, {"loss": 123.456, "critic_accuracy/z": 0.75})
    assert history.postfix() == {"loss": "123", "critic_accuracy/z": "0.75"}
    assert history.postfix("loss", "a", digits=5) == {"loss": "123.46"}
