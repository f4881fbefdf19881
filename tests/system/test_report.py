# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The examples that watch a run, what TensorBoard reads of them, and the page in a real browser."""

import shutil

import numpy as np
import pytest
from example_runs import run_example
from page_reader import read_page

pytestmark = pytest.mark.slow

BACKENDS = ["pyro", "numpyro"]
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """From a backend to the finished example's folder and output, run once."""
    done = {}

    def of(backend):
        if backend not in done:
            output = tmp_path_factory.mktemp(backend)
            finished = run_example("tensorboard_logging", backend, output, "--smoke-test")
            done[backend] = output, finished
        return done[backend]

    return of


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium and chromedriver are installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bar_and_page(backend, run):
    output, done = run(backend)
    assert "divergence=" in done.stderr
    assert "critic_accuracy=" in done.stderr
    assert "wrote " in done.stdout
    page = read_page(output / "report.html")
    assert page.title == "A small GAN on the digits"
    assert len(page.pictures["samples"]) == 2
    assert len(page.pictures["curves"]) == 4
    for section in ("calibration", "overlap"):
        assert page.pictures[section]
    assert "GaussianNoise" in page.sections["settings"]
    assert "num_steps" in page.sections["settings"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensorboard_reads_what_was_logged(backend, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, done = run(backend)
    events = EventAccumulator(str(output), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert {
        "loss",
        "divergence",
        "critic_accuracy",
        "critic_divergence",
        "critic_saturated",
        "log_ratio_gap",
    } == set(tags["scalars"])
    assert set(tags["histograms"]) == {"log_ratio/data", "log_ratio/model"}
    assert tags["images"]
    accuracy = events.Scalars("critic_accuracy")
    assert [event.step for event in accuracy] == [10, 20]
    assert all(0 <= event.value <= 1 for event in accuracy)
    last = events.Scalars("divergence")[-1].value
    assert f"'divergence': '{last:.3g}'" in done.stdout
    data = events.Histograms("log_ratio/data")[-1].histogram_value
    assert data.num == 359  # the held-out digits
    gap = events.Scalars("log_ratio_gap")[-1].value
    model = events.Histograms("log_ratio/model")[-1].histogram_value
    # The callback asks again, with fresh noise and samples.
    means = [side.sum / side.num for side in (data, model)]
    spread = np.sqrt(sum(side.sum_squares / side.num for side in (data, model)) / data.num)
    assert abs(means[0] - means[1] - gap) < 10 * spread


@pytest.mark.parametrize("backend", BACKENDS)
def test_page_in_a_browser(backend, run, browser):
    output, _ = run(backend)
    browser.get((output / "report.html").as_uri())
    complaints = [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]
    assert not complaints
    widths = browser.execute_script(
        "return [...document.images].map(i => i.complete ? i.naturalWidth : 0)"
    )
    assert len(widths) >= 8
    assert min(widths) > 100
    # Nothing but the page itself was asked for.
    sent = [e["message"] for e in browser.get_log("performance")]
    urls = [m for m in sent if '"Network.requestWillBeSent"' in m and '"url":"http' in m]
    assert not urls
    # Links of the page lead to sections that are there, and nothing is wider than the window.
    broken = browser.execute_script(
        "return [...document.querySelectorAll('nav a')].filter("
        "a => !document.querySelector(a.getAttribute('href'))).length"
    )
    assert broken == 0
    wide = "return document.documentElement.scrollWidth > window.innerWidth"
    for width in (1200, 420):
        browser.set_window_size(width, 900)
        assert not browser.execute_script(wide), width
