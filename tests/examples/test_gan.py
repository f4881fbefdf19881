# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The GAN example runs in both backends, and its judges tell good samples from bad ones."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from studies.gan_study import (
    LOSSES,
    PRESETS,
    Fit,
    as_images,
    as_signed,
    bandwidths,
    batches,
    compare,
    gan_table,
    parse_args,
)
from studies.labels import LabelJudge, StackedJudge, stack

from spread_analysis.datasets import load_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def judge(digits):
    return LabelJudge(digits)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro", "pyro --compile"])
def test_smoke(backend, tmp_path):
    backend, *compiles = backend.split()
    script = ROOT / "examples" / backend / "gan.py"
    output = tmp_path / "out"
    # One of each kind: NumPyro compiles every one.
    names = ["js-ns"] if compiles else ["js-ns", "wasserstein", "mmd"]
    options = ["--smoke-test", "--num-seeds", "1", "--losses", *names, "--output", str(output)]
    options += compiles
    done = subprocess.run(
        [sys.executable, str(script), *options],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (output / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "table.txt").read_text().strip() in done.stdout
    results = json.loads((output / "results.json").read_text())
    assert list(results["losses"]) == names
    frechet = [run["frechet"] for runs in results["losses"].values() for run in runs]
    assert all(map(math.isfinite, frechet))
    assert len(set(frechet)) == len(names)  # every loss moved the one start its own way


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_every_loss_can_be_chosen(backend, digits, monkeypatch):
    pytest.importorskip(f"{backend}_spread")
    path = ROOT / "examples" / backend / "gan.py"
    spec = importlib.util.spec_from_file_location(f"gan_{backend}", path)
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, example)  # flax looks itself up there
    spec.loader.exec_module(example)
    assert list(example.LOSSES) == list(LOSSES)
    args = parse_args(backend, "", ["--gamma", "3"])
    net = __import__("torch").nn.Linear(64, 1) if backend == "pyro" else example.MLP(4, 1, abs)
    for name, make in example.LOSSES.items():
        loss = make(args, example.concat_sites(net, "x"), digits)
        assert hasattr(loss, "discriminator") == (name not in example.WITHOUT_CRITIC)
        if isinstance(loss, example.AdversarialDivergence):
            assert (loss.regularizer is None) == name.endswith("no-r1")
            assert loss.generator == ("non_saturating" if "-ns" in name else "divergence")


def test_data_that_are_not_there_are_said_to_be(tmp_path):
    args = parse_args("pyro", "", ["--dataset", "mnist", "--data-dir", str(tmp_path / "no")])
    args.output = str(tmp_path / "out")
    with pytest.raises(SystemExit, match="there is no folder"):
        compare("pyro", args, lambda *_: pytest.fail("trained without data"))


def test_options_come_from_the_preset_of_the_data_set(capsys):
    args = parse_args("pyro", "", ["--dataset", "mnist", "--batch-size", "7"])
    assert (args.batch_size, args.hidden_dim) == (7, PRESETS["mnist"].hidden_dim)
    assert args.losses == list(LOSSES)
    assert not hasattr(parse_args("numpyro", "", [], program="conditional"), "losses")
    for option in ("--num-seeds", "--num-steps", "--batch-size"):
        with pytest.raises(SystemExit):
            parse_args("pyro", "", [option, "0"])
        assert f"{option} must be at least 1" in capsys.readouterr().err


def test_label_judge(digits, judge):
    assert judge.accuracy > 0.95
    real = judge(digits.test_images)
    assert real.shares.sum() == pytest.approx(1.0)
    truth = np.bincount(digits.test_labels, minlength=10) / len(digits.test_labels)
    np.testing.assert_allclose(real.shares, truth, atol=0.02)
    one_class = judge(digits.test_images[digits.test_labels == 3])
    assert one_class.shares[3] > 0.9
    assert one_class.shares.min() == 0
    # Averages of images of all classes look like none of them.
    blurred = np.mean(np.split(digits.test_images[:350], 7), axis=0)
    assert judge(blurred).confidence < real.confidence - 0.1


def test_stacked_classes_are_counted(digits, judge):
    stacked = stack(digits, 300)
    counted = StackedJudge(digits, judge)(stacked.test_images)
    assert counted.shares.shape == (1000,)
    # Draws of a thousand classes: 1000 (1 - exp(-.3)) = 259 of them are there.
    assert 230 < (counted.shares > 0).sum() < 290
    assert counted.confidence == pytest.approx(judge(digits.test_images).confidence, abs=0.02)
    # Three colours, in their order.
    one = [digits.test_images[digits.test_labels == label] for label in (3, 0, 7)]
    images = np.stack([images[:25] for images in one], -1)
    assert StackedJudge(digits, judge)(images).shares[307] > 0.8


def test_comparison_tells_real_images_from_collapse(digits, tmp_path):
    def fit(name, seed, dataset, num_samples):
        source = dataset.train_images
        if name == "js-no-r1":
            source = source[dataset.train_labels == 3]
        chosen = np.random.default_rng(seed).integers(len(source), size=num_samples)
        samples = source[chosen].reshape(num_samples, -1)
        return Fit(np.full_like(samples, np.nan) if name == "kl" else samples, 1.0)

    options = ["--losses", "js", "js-no-r1", "kl", "--num-seeds", "2", "--output", str(tmp_path)]
    results = compare("pyro", parse_args("pyro", "", options), fit)
    rows = gan_table([results]).splitlines()
    assert [row[-16:].split() for row in rows[2:5]] == [
        ["2", "of", "2", "1"],
        ["0", "of", "2", "1"],
        ["0", "of", "2", "1"],
    ]
    good, collapsed = (results["losses"][name][0] for name in ("js", "js-no-r1"))
    assert collapsed["frechet"] > 10 * good["frechet"]
    assert collapsed["smallest"] == 0
    assert "nan" in rows[4]


def test_batches_are_of_the_seed_and_within_the_data():
    chunks = list(batches(10, 4, 250, seed=1))
    assert [chunk.shape for chunk in chunks] == [(100, 4), (100, 4), (50, 4)]
    everything = np.concatenate(chunks)
    assert set(everything.ravel()) == set(range(10))
    np.testing.assert_array_equal(everything, np.concatenate(list(batches(10, 4, 250, seed=1))))
    assert (everything != np.concatenate(list(batches(10, 4, 250, seed=2)))).any()


def test_signed_pixels_and_back(digits):
    signed = as_signed(digits.test_images)
    assert signed.shape == (len(digits.test_images), 64)
    assert (signed.min(), signed.max()) == (-1, 1)
    np.testing.assert_allclose(as_images(signed), digits.test_images.reshape(-1, 64), atol=1e-7)


def test_bandwidths_are_about_the_median_distance(digits):
    flat = digits.train_images.reshape(len(digits.train_images), -1)
    pairs = 2 * np.linalg.norm(flat[:700] - flat[700:1400], axis=1)
    assert max(bandwidths(digits)) == pytest.approx(np.median(pairs), rel=0.05)
