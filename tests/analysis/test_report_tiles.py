# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What a report says first, in a console, in a notebook and on its page."""

from pathlib import Path

import numpy as np
import pytest

from spread_analysis import History
from spread_analysis.report import CriticLogits, LossWords, Report, page
from spread_analysis.report.content import compute_metrics, tiles
from spread_analysis.report.gather import count_data
from spread_analysis.report.orbits import orbits

GAN = LossWords("AdversarialDivergence", "JSPi(0.5) estimate", is_divergence=True)
ELBO = LossWords("SpreadELBO", "minus the ELBO of the spread data", is_sum=True)
STEPS = np.arange(2000)


def modes(number, shares, seed):
    """Points about the corners of a square, at which there are such shares of them."""
    rng = np.random.default_rng(seed)
    corners = 4.0 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    return corners[rng.choice(4, number, p=shares)] + rng.normal(size=(number, 2))


def make(samples=None, words=GAN, **changes):
    data = modes(600, [0.25] * 4, 0)
    told = {
        "title": "a run",
        "words": words,
        "value": 0.25,
        "data": {"x": data},
        "samples": {"x": modes(300, [0.25] * 4, 1) if samples is None else samples},
        "path": Path("runs") / "run.html",
    }
    report = Report(**told | changes)
    report.metrics = [row for row in compute_metrics(report) if row.name != "C2ST"]
    return report


@pytest.fixture(autouse=True)
def _no_classifier(monkeypatch):
    monkeypatch.setattr("spread_analysis.report.content._LEAST_C2ST_SAMPLES", 10**6)


def by_text(report):
    return {tile.text.split(" against")[0].split(";")[0]: tile for tile in tiles(report)}


def test_the_repr_is_one_short_line():
    losses = np.random.default_rng(0).normal(size=2000)
    report = make(losses=losses, warnings=["something"])
    assert repr(report) == (
        "<Report 'a run': JSPi(0.5) estimate (nats) 0.25; 1 warning; "
        f"{str(Path('runs') / 'run.html')!r}>"
    )


def test_a_notebook_gets_tiles_and_the_way_to_the_page():
    hostile = '<script>alert("x")</script>'
    report = make(title=hostile, path=Path(f"{hostile}.html"))
    html = report._repr_html_()
    assert "<script" not in html
    assert len(html) < 4000
    for tile in tiles(report):
        assert f">{tile.value}<" in html
    assert "&lt;script&gt;" in html


def test_precision_and_recall_are_among_the_tiles():
    found = by_text(make())
    assert found["precision"].good is found["recall"].good is None
    assert float(found["recall"].value) > 0.8
    assert "other data score 0.9" in found["recall"].text


@pytest.mark.parametrize("shares", [[0.5, 0.5, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0]])
def test_lost_recall_turns_red(shares):
    report = make(modes(300, shares, 1))
    found = by_text(report)
    assert found["recall"].good is False
    assert found["precision"].good is None
    assert 'class="card bad"><b>' + found["recall"].value in page.render(report)
    assert "the model leaves out part of the data" in page.render(report)


def test_samples_where_there_are_no_data_turn_precision_red():
    samples = np.concatenate([modes(150, [0.25] * 4, 1), modes(150, [0.25] * 4, 2) * 0.1])
    report = make(samples)
    found = by_text(report)
    assert found["precision"].good is False
    assert "samples lie where there are no data" in page.render(report)


def test_no_number_is_no_recall_and_few_data_say_nothing():
    report = make(np.full((300, 2), np.nan))
    assert by_text(report)["recall"].good is False
    few = make(modes(30, [1, 0, 0, 0], 1), data={"x": modes(30, [0.25] * 4, 0)})
    assert by_text(few)["recall"].good is None


def noise(scale, seed=0):
    return scale * np.random.default_rng(seed).normal(size=len(STEPS))


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (0.3 + 0.2 * np.sin(STEPS / 60), True),
        (0.3 + 0.2 * np.sin(STEPS / 60) + noise(0.1), True),
        (0.3 + 0.2 * np.sin(STEPS / 4) + noise(0.05), True),  # fast
        (0.3 + 0.2 * np.sign(np.sin(STEPS / 40)), True),
        (2 * np.exp(-STEPS / 100) + 0.3 + 0.2 * np.sin(STEPS / 60), True),  # after a fall
        (0.6 * np.exp(-STEPS / 200), False),
        (0.6 * np.exp(-STEPS / 200) + noise(0.02), False),
        (0.1 + noise(0.1), False),  # noise of minibatches
        (0.6 * np.exp(-STEPS / 200) + 0.03 * np.sin(STEPS / 60), False),  # swings that are small
        (0.0003 * STEPS, False),
        (np.full(2000, 0.5), False),
        (np.full(2000, np.nan), False),
        (np.array([0.1, 0.9] * 4), False),  # too few to tell
    ],
)
def test_what_orbits(curve, expected):
    assert orbits(curve, 0.07) is expected


def test_noise_hardly_ever_looks_like_an_orbit():
    found = [orbits(0.2 + noise(0.2, seed)) for seed in range(200)]
    assert sum(found) <= 6


def test_an_orbiting_divergence_turns_red():
    curve = 0.3 + 0.2 * np.sin(STEPS / 60)
    report = make(losses=curve)
    found = by_text(report)["the divergence swings to and fro and does not settle"]
    assert (found.value, found.good) == ("orbits", False)
    assert "take smaller steps" in page.render(report)
    history = History()
    for step in STEPS[::20]:
        history.add(int(step), {"divergence": curve[step]})
    logits = {"": CriticLogits(np.zeros(9), np.zeros(9))}
    report = make(history=history, logits=logits)
    assert any(tile.value == "orbits" for tile in tiles(report))
    assert "the players chase each other" in page.render(report)
    assert not any(tile.value == "orbits" for tile in tiles(make(losses=curve, words=ELBO)))


def test_a_sum_over_the_data_is_given_per_datum():
    found = by_text(make(words=ELBO, value=1500.0, num_data=600.0))
    assert found["nats per datum"].value == "2.5"
    assert found["nats per datum"].text.endswith("600 data")
    assert "nats per datum" not in by_text(make(words=ELBO))
    assert "nats per datum" not in by_text(make(num_data=600.0))


def test_data_are_counted_once_and_scaled():
    rows = np.array([True, False, True])
    assert count_data([(rows, 1.0)]) == 2.0
    assert count_data([(rows, 4.0), (~rows, 4.0)]) == 12.0
    assert np.isnan(count_data([(rows, 1.0), (rows, 2.0)]))
    assert np.isnan(count_data([(rows, 1.0), (rows[:2], 1.0)]))
    assert count_data([(np.array(True), 1.0)]) == 1.0


def test_the_page_has_a_dark_mode():
    text = page.render(make())
    assert '<meta name="color-scheme" content="light dark">' in text
    assert "@media (prefers-color-scheme: dark)" in text
    light, dark = text[text.index(":root") : text.index("* {")].split("@media")
    for name in ("ink", "soft", "line", "data", "page", "paper", "good", "bad", "alarm"):
        assert f"--{name}:" in light
        assert f"--{name}:" in dark
    assert ".plot img { filter: invert" in dark
    rest = text[text.index("* {") : text.index("</style>")]
    assert "#" not in rest
