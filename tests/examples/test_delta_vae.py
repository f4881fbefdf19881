# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The examples run as a user runs them: as programs, in processes of their own."""

import gzip
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from studies.comparison import (
    PRESETS,
    Fit,
    compare,
    comparison_table,
    describe,
    learning_rate_factor,
    load_results,
    minibatches,
    parse_args,
)

ROOT = Path(__file__).parents[2]
PICTURES = {"data.png", "samples.png"} | {
    f"{kind}_{model}.png"
    for kind in ("samples", "reconstructions", "loss")
    for model in ("vae", "spread")
}
SMALL = ["--smoke-test", "--num-seeds", "2"]


def run(*arguments, **options):
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.defpath, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Both examples, by way of the demo that runs them."""
    pytest.importorskip("matplotlib")
    output = tmp_path_factory.mktemp("demo")
    return output, run(ROOT / "examples" / "demo.py", "--output", output, *SMALL)


@pytest.mark.slow
def test_demo_ends_well_and_says_where_things_are(demo):
    output, process = demo
    assert process.returncode == 0, process.stderr
    assert (output / "table.txt").read_text().strip() in process.stdout
    for row in ("pyro plain VAE", "pyro spread", "numpyro plain VAE", "numpyro spread", "real im"):
        assert f"\n{row}" in process.stdout
    assert str(output / "pyro" / "samples_spread.png") in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_example_writes_pictures_table_and_results(demo, backend):
    folder = demo[0] / backend
    written = {path.name for path in folder.glob("*.png")}
    assert written == PICTURES
    for name in PICTURES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert f"{backend} spread delta-VAE" in (folder / "table.txt").read_text()

    results = load_results(folder)
    assert results["backend"] == backend
    vae, spread = (results["models"][name] for name in ("vae", "spread"))
    assert spread["stock_loss"] == [math.inf] * 2
    assert vae["spread_loss"] == [None] * 2
    assert len(vae["noisy"]["frechet"]) == 2
    assert "noisy" not in spread  # its samples are the decoder's outputs themselves
    for values in (vae["stock_loss"], spread["spread_loss"], vae["frechet"], spread["frechet"]):
        assert len(values) == 2
        assert all(map(math.isfinite, values))
        assert values[0] != values[1]  # the seeds differ


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_stock_loss_is_shown_to_be_infinite_first(demo, backend):
    said = {"pyro": "step(x) gives inf", "numpyro": "update(state, x) gives inf"}[backend]
    assert said in demo[1].stdout
    assert said in (demo[0] / backend / "log.txt").read_text()


@pytest.mark.slow
def test_compiled(tmp_path):
    pytest.importorskip("matplotlib")
    script, options = ROOT / "examples" / "pyro" / "delta_vae.py", [*SMALL[:-1], "1", "--compile"]
    process = run(script, "--output", tmp_path, *options)
    assert process.returncode == 0, process.stderr
    models = load_results(tmp_path)["models"]
    assert all(map(math.isfinite, models["spread"]["spread_loss"] + models["vae"]["stock_loss"]))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
@pytest.mark.parametrize("kind", ["learned", "learned-mean"])
def test_learned_noise(tmp_path, backend, kind):
    pytest.importorskip("matplotlib")
    script, options = ROOT / "examples" / backend / "delta_vae.py", [*SMALL[:-1], "1"]
    process = run(script, "--output", tmp_path, *options, "--noise", kind)
    assert process.returncode == 0, process.stderr
    assert f"Spread noise 0.3, {kind.replace('-', ' ')}." in " ".join(process.stdout.split())
    assert all(map(math.isfinite, load_results(tmp_path)["models"]["spread"]["spread_loss"]))


@pytest.mark.slow
def test_demo_stops_at_a_failing_example(tmp_path):
    process = run(
        ROOT / "examples" / "demo.py", "--output", tmp_path, "--dataset", "mnist",
        "--data-dir", tmp_path / "nowhere",
    )  # fmt: skip
    assert process.returncode == 1
    assert "there is no folder" in process.stderr
    assert "table" not in process.stdout


def test_options_come_from_the_preset_of_the_data_set():
    args = parse_args("pyro", "", ["--dataset", "mnist", "--data-dir", "d", "--latent-dim", "3"])
    assert args.latent_dim == 3
    assert args.num_epochs == PRESETS["mnist"].num_epochs
    assert not args.cuda
    assert not args.compile
    assert parse_args("numpyro", "", []).device == "cpu"
    assert not hasattr(parse_args("numpyro", "", []), "compile")
    assert parse_args("numpyro", "", ["--noise-scale", "0.7"]).noise_scale == 0.7


def test_bad_options_are_refused(capsys):
    for option in ("--num-seeds", "--num-epochs", "--batch-size"):
        with pytest.raises(SystemExit):
            parse_args("pyro", "", [option, "0"])
        assert option in capsys.readouterr().err


def test_minibatches_cover_each_image_at_most_once():
    batches = minibatches(10, 3, np.random.default_rng(0))
    assert batches.shape == (3, 3)
    assert len(np.unique(batches)) == 9
    assert minibatches(4, 9, np.random.default_rng(0)).shape == (1, 4)


def test_learning_rate_is_constant_then_falls_to_zero():
    assert [learning_rate_factor(done) for done in (0, 0.25, 0.5, 0.75, 1)] == [1, 1, 1, 0.5, 0]


def test_a_sixth_of_mnist_is_for_the_yardstick(tmp_path):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    for part, count in (("train", 240), ("t10k", 60)):
        images, labels = rng.integers(0, 256, (count, 4, 4)), np.arange(count) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            content = gzip.compress(header + array.astype(np.uint8).tobytes())
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(content)

    def fit(name, seed, dataset, num_samples):
        assert len(dataset.train_images) == 200
        assert num_samples == 20
        samples = rng.random((num_samples, 16))
        few = samples[:10]
        noisy = samples if name == "vae" else None
        return Fit([2.0, 1.0], 1.0, None if name == "vae" else 1.0, samples, noisy, few, few, 1.0)

    options = ["--dataset", "mnist", "--data-dir", tmp_path, "--output", tmp_path, "--num-seeds", 1]
    results = compare("pyro", parse_args("pyro", "", [*map(str, options)]), fit)
    assert (results["num_train"], results["num_held_out"]) == (200, 60)
    assert "learned from 20 images that are neither trained on nor held out" in results["features"]
    assert results["real_images"] == "20 images that are used for nothing else"


def test_table_of_one_seed_has_no_errors():
    quality = {"frechet": [1.0], "mmd2": [0.001], "precision": [0.5], "recall": [0.25]}
    model = {"seconds": [1.0], **quality}
    results = {
        "backend": "pyro",
        "options": {
            "dataset": "digits",
            "latent_dim": 2,
            "num_epochs": 1,
            "noise_scale": 0.3,
            "num_seeds": 1,
        },
        "num_train": 3,
        "num_held_out": 2,
        "num_samples": 3,
        "features": "features",
        "real_images": "the training images",
        "real": {metric: values[0] for metric, values in quality.items()},
        "models": {
            "vae": {"stock_loss": [-1.5], "spread_loss": [None], **model},
            "spread": {"stock_loss": [math.inf], "spread_loss": [2.5], **model},
        },
    }
    rows = comparison_table([results]).splitlines()
    assert rows[2].split()[3:] == ["-1.50", "-", "1.00", "1.00", "0.50", "0.25", "1.0"]
    assert rows[3].split()[3:5] == ["inf", "2.50"]
    assert "±" not in "".join(rows)
    assert "digits: 3 training images" in describe(results)
