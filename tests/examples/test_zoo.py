# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The shared part of the zoo: rows, what backends hand in, table, pictures, files."""

import argparse
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from studies import zoo
from studies.zoo import (
    MAX_COUNT,
    ROWS,
    SYSTEMS,
    Trained,
    load_zoo_data,
    mixture_bound,
    run_rows,
    write_report,
    zoo_table,
)
from studies.zoo.page import MISSING, docs_file, merged
from studies.zoo.program import seeds
from studies.zoo.report import describe, plot_summary
from studies.zoo.rows import check_trained, settings_for

ROOT = Path(__file__).parents[2]
BACKENDS = ("pyro", "numpyro")
PIXELS = 64


@pytest.fixture(scope="module")
def data():
    return load_zoo_data()


def trained(num_samples=5, value=0.5, **changes):
    return Trained(np.full((num_samples, PIXELS), value), 1.0, **changes)


def run(**changes):
    values = {"frechet": 1.25, "mmd2": 0.004, "precision": 0.8, "recall": 0.7, "seconds": 9.6}
    return values | {"log_likelihood": -90.0, "importance_weighted": None} | changes


def results(backend="pyro", **rows):
    real = {"frechet": 0.4, "mmd2": 0.0, "precision": 0.9, "recall": 0.9}
    numbers = {"num_train": 1438, "num_held_out": 359, "num_samples": 1438, "num_seeds": 1}
    numbers["dataset"] = "digits"
    rows = {name.replace("_", "-"): runs for name, runs in rows.items()}
    return {"backend": backend, **numbers, "features": "features", "real": real, "rows": rows}


def line(table, title, backend="pyro"):
    (found,) = [text for text in table.splitlines() if f"| {title} | {backend} |" in text]
    return [cell.strip() for cell in found.strip("|").split("|")][2:]


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_every_system_has_its_file(backend):
    folder = ROOT / "examples" / backend / "zoo"
    assert {path.stem for path in folder.glob("*.py")} - {"parts", "studies"} == set(SYSTEMS)


def test_pixels_are_whole_numbers_and_the_split_that_of_all_examples(data):
    assert (len(data.train_counts), len(data.test_counts)) == (1438, 359)
    np.testing.assert_array_equal(data.train_counts, data.train_images * MAX_COUNT)
    assert set(np.unique(data.test_counts)) == set(range(17))
    assert data.num_classes == 10
    assert data.label_shares.sum() == pytest.approx(1)


def test_labels_are_drawn_in_their_shares(data):
    shares = np.bincount(data.label_draws(20_000, seed=0)) / 20_000
    # Five standard deviations of a share of a tenth.
    np.testing.assert_allclose(shares, data.label_shares, atol=5 * (0.09 / 20_000) ** 0.5)


def test_settings_are_the_row_s_own_unless_asked_for():
    row = ROWS["vae"]
    assert settings_for(row, 3, 7)[:4] == (3, row.num_steps, row.learning_rate, 7)
    assert settings_for(row, 3, 7, num_steps=11).num_steps == 11
    assert settings_for(row, 3, 7, smoke_test=True).num_steps < 10
    coin = settings_for(ROWS["coin"], 3, 7, smoke_test=True)
    assert coin.num_steps == ROWS["coin"].num_steps  # its answer is known


def test_a_sum_over_labels_by_hand():
    log_likelihoods = np.log([[0.5, 0.25], [0.1, 0.2]])
    expected = np.log([0.3 * 0.5 + 0.7 * 0.25, 0.3 * 0.1 + 0.7 * 0.2])
    np.testing.assert_allclose(mixture_bound(log_likelihoods, [0.3, 0.7]), expected)
    assert mixture_bound([[-2000.0, -2000.0]], [0.5, 0.5]) == pytest.approx([-2000.0])


@pytest.mark.parametrize(
    ("row", "handed_in", "message"),
    [
        (
            "vae",
            trained(4, log_likelihood=-9.0),
            r"vae: samples must have shape \(5, 64\), got \(4",
        ),
        ("vae", trained(value=1.5, log_likelihood=-9.0), r"in \[0, 1\], got some from 1.5 to 1.5"),
        ("vae", trained(), r"vae: log_likelihood must be a number \(bound\), got None"),
        ("ali", trained(log_likelihood=-9.0), r"ali: this row has no log-likelihood, got -9.0"),
    ],
)
def test_what_a_backend_gets_wrong_is_refused(row, handed_in, message):
    with pytest.raises(ValueError, match=message):
        check_trained(ROWS[row], handed_in, 5, PIXELS)


def test_what_it_gets_right_or_diverged_is_not():
    check_trained(ROWS["ali"], trained(), 5, PIXELS)
    check_trained(ROWS["ali"], trained(value=np.nan), 5, PIXELS)
    check_trained(ROWS["vae"], trained(log_likelihood=float("nan")), 5, PIXELS)


def test_the_table_says_what_kind_of_number_each_is():
    rows = {"coin": [run()], "vae": [run(importance_weighted=-80.0)], "js_pi_0.5": [run()]}
    table = zoo_table([results(**rows, delta_vae_gaussian=[run(log_likelihood=30.0)])])
    assert line(table, "coin") == ["-90.0", "-", "4.00", "1.25", "0.80", "0.70", "10"]
    assert line(table, "VAE")[:2] == ["≥ -90.0", "≥ -80.0"]
    assert line(table, "JS_pi, pi = .5")[:2] == ["-", "-"]
    assert line(table, "delta-VAE, Gaussian noise")[:2] == ["[30.0]", "-"]
    assert "| real images (training) |  |  |  | 0.00 | 0.40 | 0.90 | 0.90 |  |" in table
    widths = {text.count("|") for text in table.splitlines()}
    assert widths == {10}


def test_rows_that_were_not_made_say_so():
    table = zoo_table([results(coin=[run()]), results("numpyro")], ["coin", "made"])
    assert line(table, "coin")[0] == "-90.0"
    for title, backend in [("coin", "numpyro"), ("MADE", "pyro"), ("MADE", "numpyro")]:
        assert line(table, title, backend) == [MISSING] * 7


def test_a_run_that_diverged_says_so():
    table = zoo_table([results(vae=[run(log_likelihood=None), run()])])
    assert line(table, "VAE")[:4] == [MISSING, "-", "4.00 ± 0.00", "1.25 ± 0.00"]


def options(output, **changes):
    values = {"output": output, "seed": 0, "num_seeds": 1, "num_steps": None, "smoke_test": True}
    values |= {"dataset": "digits", "data_dir": None, "resume": False}
    return argparse.Namespace(**values | changes)


def copies(log_likelihood=-90.0):
    """A way to train a row: its samples are training images."""

    def train(row, data, settings):
        if row == "fvsbn":
            raise RuntimeError("no luck")
        samples = np.random.default_rng(0).choice(data.train_images, settings.num_samples)
        measured = ROWS[row].measure is not None
        return Trained(samples, 1.0, log_likelihood if measured else None)

    return train


def test_a_row_that_fails_costs_no_other(tmp_path, capsys):
    rows = [(ROWS[name], copies()) for name in ("coin", "fvsbn", "made")]
    with pytest.raises(SystemExit, match="fvsbn: RuntimeError: no luck"):
        run_rows("pyro", rows, options(tmp_path / "pyro"))
    assert "Traceback" in capsys.readouterr().err
    written = json.loads((tmp_path / "pyro" / "results.json").read_text())
    assert [len(runs) for runs in written["rows"].values()] == [1, 0, 1]
    assert written["rows"]["made"][0]["frechet"] < 2  # real images are not far from real images
    assert (tmp_path / "pyro" / "samples.png").read_bytes().startswith(b"\x89PNG")

    docs = tmp_path / "docs"
    folders = {"pyro": tmp_path / "pyro"}
    text = write_report(tmp_path, folders, ["coin", "autoregressive"], docs=docs)
    assert line(text, "fully visible belief net") == [MISSING] * 7
    assert (tmp_path / "table.md").read_text() == text + "\n"
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")
    included = (docs / docs_file("digits")).read_text()
    assert text in included
    pictures = re.findall(r"\]\((images/\S+)\)", included)
    assert [path.split("/")[1] for path in pictures] == ["zoo_summary.png", "zoo_samples_pyro.png"]
    assert all((docs / path).is_file() for path in pictures)


def test_finished_rows_are_kept(tmp_path, capsys):
    def run_again(names, log_likelihood, **changes):
        rows = [(ROWS[name], copies(log_likelihood)) for name in names]
        return run_rows("pyro", rows, options(tmp_path, resume=True, **changes))["rows"]

    with pytest.raises(SystemExit, match="fvsbn: RuntimeError"):
        run_again(["coin", "fvsbn"], -1.0)
    # What is finished stays, what has failed is tried again, and a row that is new is added.
    with pytest.raises(SystemExit, match="fvsbn: RuntimeError"):
        run_again(["coin", "fvsbn", "made"], -2.0)
    assert "pyro: coin, as before" in capsys.readouterr().out
    rows = run_again(["made"], -3.0)
    assert [rows[name][0]["log_likelihood"] for name in ("coin", "made")] == [-1.0, -2.0]
    assert list(np.load(tmp_path / "shown.npz")) == ["coin", "made"]
    # Other settings are another run.
    rows = run_again(["made"], -4.0, num_steps=3)
    assert [rows[name][0]["log_likelihood"] for name in ("coin", "made")] == [-1.0, -4.0]
    rows = run_again(["made"], -5.0, num_steps=3, num_seeds=2)
    assert [run["seed"] for run in rows["made"]] == [0, 1]
    with pytest.raises(SystemExit, match=r"\(backend 'pyro', here 'numpyro'\): leave --resume out"):
        run_rows("numpyro", [], options(tmp_path, resume=True))
    # Without the option all is new.
    assert run_rows("numpyro", [], options(tmp_path))["rows"] == {}


def test_games_have_three_seeds_unless_told_otherwise(tmp_path):
    rows = [(ROWS[name], copies()) for name in ("coin", "gan-unrolled")]
    chosen = {"smoke_test": True, "num_steps": 1}
    found = run_rows("pyro", rows, options(tmp_path, num_seeds=None, **chosen))
    assert [len(runs) for runs in found["rows"].values()] == [1, 1]
    assert [seeds(row, options(tmp_path, num_seeds=None, smoke_test=False)) for row, _ in rows] == [
        range(1),
        range(3),
    ]
    assert seeds(ROWS["coin"], options(tmp_path, num_seeds=2, seed=5)) == range(5, 7)
    words = describe(results() | {"num_seeds": None})
    assert "± standard error of 3 seeds for games with a critic; one seed for all others." in words


def test_a_panel_without_numbers_is_not_drawn():
    def texts(axes):
        return [text.get_text() for text in axes.texts]

    alone = plot_summary([results(ali=[run(log_likelihood=None)])])
    assert alone.figure.axes == [alone]
    both = plot_summary([results(ali=[run()], vae=[run()], delta_vae_laplace=[run()])])
    _, right = both.figure.axes
    assert texts(right) == ["of images with noise: not comparable", "has none"]
    assert [list(drawn.get_ydata()) for drawn in right.lines if len(drawn.get_ydata())] == [[0]]


def test_the_page_keeps_rows_that_were_not_run(tmp_path):
    def write(names, log_likelihood, **changes):
        rows = [(ROWS[name], copies(log_likelihood)) for name in names]
        for backend in BACKENDS:
            run_rows(backend, rows, options(tmp_path / backend, **changes))
        folders = {backend: tmp_path / backend for backend in BACKENDS}
        write_report(tmp_path, folders, [ROWS[name].system for name in names], docs=tmp_path)
        return (tmp_path / "zoo_results.inc").read_text()

    before = write(["recurrent", "vae"], -1.0)
    assert "Added after" not in before
    after = write(["coin", "vae"], -2.0)
    lines = [text.split(" | ")[:3] for text in after.splitlines() if "pyro |" in text]
    assert lines == [
        [f"| {title}", backend, number]
        for title, number in [("coin", "-2.0"), ("recurrent (GRU)", "-1.0"), ("VAE", "≥ -2.0")]
        for backend in BACKENDS
    ]
    assert "\n\nAdded after the pictures were made: coin.\n\n![" in after
    assert after.split("![")[1:] == before.split("![")[1:]
    write(["made", "gan-k-steps"], -3.0)  # the other rows of these files were not run
    again = write(["ali"], -3.0)
    assert "made: coin; MADE; GAN, 3 critic steps; ALI / BiGAN.\n" in again
    assert "missing" not in again
    kept = merged(f"head\n---\n| coin | pyro | {MISSING} | {MISSING} |\nreal", again)
    assert "| coin | pyro | -2.0 |" in kept  # of a backend in which it was not run
    with pytest.raises(SystemExit, match=r"zoo_results\.inc has rows of other data or seeds"):
        write(["coin"], -4.0, num_seeds=2)


def test_mnist_is_read_from_a_folder(tmp_path):
    for part, size in (("train", 60), ("t10k", 20)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", np.full((size, 28, 28), 128))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(size) % 10)
    data = load_zoo_data(dataset="mnist", data_dir=str(tmp_path))
    assert data.test_counts.shape == (20, 784)
    assert set(data.test_counts.flat) == {8.0}  # 128 of 255 is the ninth of 17 levels
    assert len(data.train_images) == 50  # the others are the yardstick's
    assert settings_for(ROWS["vae"], 0, 7, dataset="mnist").hidden_dim == 256
    with pytest.raises(SystemExit, match="mnist is read from disk: name the folder of train"):
        load_zoo_data(dataset="mnist")


def write_idx(path, values):
    values = np.asarray(values, np.uint8)
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()))


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"no results in .*results\.json: run examples/zoo\.py"):
        write_report(tmp_path, {"pyro": tmp_path / "pyro"}, SYSTEMS)


def test_numbers_are_described():
    assert "1438 training images, 359 held out" in describe(results())


def test_the_page_names_every_row_s_system_and_source():
    page = (ROOT / "docs" / "zoo.md").read_text()
    for row in ROWS.values():
        assert f"`{row.system}.py`" in page
        assert all(number in page for number in re.findall(r"arXiv:(\S+?)[;,]?(?=\s|$)", row.paper))
    assert f"{{include}} {docs_file('digits')}" in page


def test_options_out_of_range_end_the_program(capsys):
    for wrong in (["--num-seeds", "0"], ["--num-steps", "0"]):
        with pytest.raises(SystemExit):
            zoo.main("pyro", "coin", None, wrong)
        assert "must be at least 1" in capsys.readouterr().err


def test_rows_are_told_apart():
    assert len({row.title for row in ROWS.values()}) == len(ROWS)
    assert replace(ROWS["vae"], system="gan").paper == ROWS["gan-saturating"].paper
