# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The four-point examples run in both backends; an implicit encoder gets near the optimum."""

import numpy as np
import pytest
from example_runs import run_example, summary
from scipy import special
from studies import avb_toy_study as study

from spread_analysis.reference import FOUR_POINTS_OPTIMUM


def run(backend, output, *options):
    """What the program printed, and its results by loss."""
    done = run_example("avb_toy", backend, output, *options)
    assert "FalseEvidenceWarning" not in done.stderr
    return done.stdout, summary(output)["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    stdout, runs = run(backend, tmp_path / "out", "--smoke-test")
    assert list(runs) == ["vae", "avb", "semi-implicit"]
    for name, (result,) in runs.items():
        assert f"{name:>15}{result['log_p']:>9.4f}" in stdout
        # Four pixels at probability one half, where everything starts, and the optimum.
        assert -4 * np.log(2) - 0.1 < result["worst"] <= result["log_p"] < FOUR_POINTS_OPTIMUM
        # What is reported falls short of log p(x), but for noise and an untrained critic.
        assert result["log_p"] - 1.5 < result["elbo"] < result["log_p"] + 0.2
    assert (tmp_path / "out" / "avb_toy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_implicit_codes_reach_what_gaussian_ones_cannot(backend, tmp_path):
    _, runs = run(backend, tmp_path, "--losses", "vae", "avb", "--seed", "20")
    assert runs["avb"][0]["log_p"] > study.TARGET
    assert runs["vae"][0]["log_p"] < -1.5


def test_log_evidence_of_a_quarter_for_each():
    """A decoder that is sure of the quadrant: every point has the probability of its own."""
    z = study.latent_grid()
    quadrant = 2 * (z[:, 0] > 0) + (z[:, 1] > 0)
    logits = np.where(np.arange(4) == quadrant[:, None], 60.0, -60.0)
    # Nodes on the axes belong to one side only: an error of half a step's prior mass.
    np.testing.assert_allclose(study.log_evidence(logits), FOUR_POINTS_OPTIMUM, atol=0.06)
    assert special.logsumexp(study.log_evidence(logits)) == pytest.approx(0.0, abs=1e-8)


def test_log_likelihoods():
    logits = np.array([[0.3, -1.2, 2.0, 0.0]])
    probs = special.expit(logits[0])
    for point in range(4):
        image = np.eye(4)[point]
        exact = np.log(np.where(image == 1, probs, 1 - probs)).sum()
        assert study.log_likelihoods(logits)[0, point] == pytest.approx(exact, abs=1e-12)


def test_batch():
    rows = study.batch(3)
    assert rows.shape == (12, 4)
    np.testing.assert_array_equal(rows[4:8], np.eye(4))
