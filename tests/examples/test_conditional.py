# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A conditional generator runs in both backends, and draws the class that it is asked for."""

import json

import numpy as np
import pytest
from example_runs import run_example
from studies.conditional_study import compare_conditional, conditional_table
from studies.gan_study import Fit, parse_args


def run(backend, output, *options):
    done = run_example("conditional", backend, output, *options)
    return done.stdout, json.loads((output / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    said, results = run(backend, tmp_path / "out", "--smoke-test", "--num-seeds", "1")
    assert (tmp_path / "out" / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "table.txt").read_text().strip() in said
    assert np.shape(results["obeyed"]) == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_generator_obeys_its_label(backend, tmp_path):
    _, results = run(backend, tmp_path / "out", "--num-seeds", "1")
    shares = np.array(results["obeyed"][0])
    assert shares.mean() > 0.9
    assert shares.min() > 0.7


def test_obedience_is_measured_class_by_class(tmp_path):
    def fit(seed, dataset, asked):
        # Obeys, but for the class 3, in whose place it draws 5.
        drawn = np.where(asked == 3, 5, asked)
        rng = np.random.default_rng(seed)
        pools = [dataset.train_images[dataset.train_labels == c] for c in range(10)]
        images = np.stack([pools[c][rng.integers(len(pools[c]))] for c in drawn])
        return Fit(images.reshape(len(asked), -1), 1.0)

    options = ["--num-seeds", "2", "--output", str(tmp_path)]
    args = parse_args("pyro", "", options, program="conditional")
    results = compare_conditional("pyro", args, fit)
    shares = np.array(results["obeyed"])
    assert shares.shape == (2, 10)
    assert (shares[:, 3] == 0).all()
    assert (np.delete(shares, 3, axis=1) > 0.97).all()
    model, real = (line.split() for line in conditional_table([results]).splitlines()[2:])
    assert model[4] == "0.0"
    assert float(model[11]) == pytest.approx(100 * shares.mean(), abs=0.05)
    assert float(real[2 + 3]) > 80
