# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Parallel lines in both backends: stuck without noise, and a warning; found with it."""

import re
import warnings

import numpy as np
import pytest
from example_runs import run_example
from studies import supports_study as study

from spread_analysis import SupportMismatchWarning

ROW = r"^ +(no noise|noise) +(\S+) +(\S+) +(\S+) +(\S+) % +(\S+)$"


def run(backend, output, *options):
    done = run_example("disjoint_supports", backend, output, *options)
    assert "SupportMismatchWarning: the critic tells data and model apart" in done.stdout
    rows = re.findall(ROW, done.stdout, re.M)
    assert [row[0] for row in rows] == ["no noise", "noise"], done.stdout
    return np.array([row[1:] for row in rows], float)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    stuck, found = run(backend, tmp_path / "out", "--smoke-test")
    for exact, reported, *_ in (stuck, found):
        assert reported == pytest.approx(exact, abs=0.02)
    # Columns: exact JS, reported, theta, error in percent, warnings.
    assert stuck[3] > 90
    assert found[3] < 5
    assert (stuck[4], found[4]) == (1, 0)
    assert (tmp_path / "out" / "disjoint_supports.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_all_seeds_end_on_the_line(backend, tmp_path):
    stuck, found = run(backend, tmp_path, "--num-seeds", "5", "--seed", "20")
    assert stuck[3] > 90
    assert found[3] < 2
    assert (stuck[4], found[4]) == (1, 0)


def test_warnings_are_counted_and_others_pass(tmp_path, capsys):
    args = study.parse_args("pyro", "", ["--smoke-test", "--output", str(tmp_path)])

    def fit(noise_scale, seed):
        if noise_scale is None:
            warnings.warn("supports", SupportMismatchWarning, stacklevel=1)
        else:
            warnings.warn("something else", RuntimeWarning, stacklevel=1)
        return study.Run(np.full(700, 2.0), np.zeros(700))

    with pytest.warns(RuntimeWarning, match="something else"):
        results = study.compare("pyro", args, fit)
    assert results["warnings"] == {"no noise": [1], "noise": [0]}
    assert "SupportMismatchWarning: supports" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pi", "1"], "--pi: the weight of the data lies strictly between 0 and 1"),
        (["--distance", "0"], "--distance: lines at distance zero do have a common support"),
    ],
)
def test_refused_options(options, message, capsys):
    with pytest.raises(SystemExit):
        study.parse_args("pyro", "", options)
    assert message in capsys.readouterr().err
