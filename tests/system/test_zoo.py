# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every row of the zoo trains in both backends, and each file runs alone."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import binom
from studies.zoo import MAX_COUNT, ROWS, load_zoo_data

ROOT = Path(__file__).parents[2]
BACKENDS = ("pyro", "numpyro")
pytestmark = pytest.mark.slow


def run_program(script, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Both backends, all rows, a few steps of each."""
    output = tmp_path_factory.mktemp("zoo")
    done = run_program("zoo.py", "--smoke-test", "--output", output)
    logs = "\n".join((output / name / "log.txt").read_text() for name in BACKENDS)
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
    return output


@pytest.fixture(scope="module")
def results(finished):
    return {each["backend"]: each for each in json.loads((finished / "results.json").read_text())}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_row_has_its_numbers(results, backend, name):
    (run,) = results[backend]["rows"][name]
    for key in ("frechet", "mmd2", "precision", "recall", "seconds"):
        assert math.isfinite(run[key]), key
    assert run["seconds"] > 0
    if ROWS[name].measure is None:
        assert run["log_likelihood"] is None
    else:
        assert math.isfinite(run["log_likelihood"])


def test_the_table_has_every_row(finished):
    table = (finished / "table.md").read_text()
    for row in ROWS.values():
        for backend in BACKENDS:
            assert f"| {row.title} | {backend} |" in table
    assert "missing" not in table
    assert "| real images (training) |" in table
    for picture in ("summary.png", "pyro/samples.png", "numpyro/samples.png"):
        assert (finished / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_coin_is_the_closed_form(results, backend):
    data = load_zoo_data(smoke_test=True)
    shares = data.train_counts.mean(0) / MAX_COUNT
    best = binom.logpmf(data.test_counts, MAX_COUNT, shares).sum(1).mean()
    # Small batches leave it beside the maximum, by some tenths of -248 nats.
    assert results[backend]["rows"]["coin"][0]["log_likelihood"] == pytest.approx(best, abs=1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tighter_bound_is_tighter(results, backend):
    # Not trained, a few nats of the gap are there in every row that has both; half a nat is noise.
    for name in ("vae", "conditional-vae", "deterministic-ica"):
        (run,) = results[backend]["rows"][name]
        assert run["importance_weighted"] > run["log_likelihood"] - 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_runs_alone(backend, tmp_path):
    options = ["--smoke-test", "--num-steps", "3", "--output", tmp_path]
    done = run_program(f"{backend}/zoo/real_nvp.py", *options)
    assert done.returncode == 0, done.stderr
    assert "| Real NVP |" in (tmp_path / "table.md").read_text()
    assert list(json.loads((tmp_path / "results.json").read_text())["rows"]) == ["real-nvp"]
