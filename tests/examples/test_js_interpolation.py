# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The JS_pi examples run in both backends and reach the exact optima, which are exact."""

import json
import re

import numpy as np
import pytest
from example_runs import run_example
from studies import interpolation_study as study

from spread_analysis.reference import class_entropy, js_divergence_normals

ROW = r"^ +(\S+) +(mlp|quadratic) +(\S+) +(\S+) +(\S+) +(\S+)  (.*)$"


def run(backend, output, *options):
    done = run_example("js_interpolation", backend, output, *options)
    assert "SupportMismatchWarning" not in done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    stdout = run(backend, tmp_path / "out", "--smoke-test")
    rows = re.findall(ROW, stdout, re.M)
    assert [row[1] for row in rows] == ["mlp", "quadratic"], stdout
    for _, _, exact, mean, exact_js, reported, _ in rows:
        # A few steps: the full run gets within 3 %.
        assert float(mean) == pytest.approx(float(exact), rel=0.15)
        assert float(reported) == pytest.approx(float(exact_js), abs=0.02)
    assert "Gaussian on two modes" in stdout
    assert (tmp_path / "out" / "js_interpolation.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert np.shape(summary["mixture mlp"]) == (1, 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_variances_within_three_percent(backend, tmp_path):
    stdout = run(backend, tmp_path, "--problems", "gaussian", "--seed", "20")
    rows = re.findall(ROW, stdout, re.M)
    errors = [float(error) for row in rows for error in row[-1].split()]
    assert len(errors) == 6, stdout
    assert max(map(abs, errors)) < 3.0, stdout


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
def test_exact_divergence_has_its_minimum_at_the_optimum(pi):
    for problem in ("gaussian", "mixture"):
        loc, std = study.optimum(problem, pi)
        least = study.exact_divergence(problem, loc, std, pi)
        assert 0 < least < class_entropy(pi)
        for factor in (0.98, 1.02):
            assert study.exact_divergence(problem, loc, std * factor, pi) > least


def test_exact_divergence_of_one_mode(monkeypatch):
    monkeypatch.setattr(study, "MODE", 0.0)
    monkeypatch.setattr(study, "WIDTH", 1.0)
    got = study.exact_divergence("mixture", 1.0, 2.0, 0.1)
    assert got == pytest.approx(js_divergence_normals(0.0, 1.0, 1.0, 2.0, 0.1), abs=1e-12)


def test_covariance():
    covariance = study.gaussian_covariance()
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance), study.EIGENVALUES)
    np.testing.assert_allclose(covariance[0, 0], covariance[1, 1])
    assert covariance[0, 1] > 0  # the long axis rises


def test_refuses_a_weight_of_one(capsys):
    with pytest.raises(SystemExit):
        study.parse_args("pyro", "", ["--pi", "0.5", "1"])
    assert "--pi: every weight of the data lies strictly between 0 and 1" in capsys.readouterr().err
