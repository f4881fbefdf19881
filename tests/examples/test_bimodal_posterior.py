# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The bimodal examples run in both backends and find both modes, which a Normal guide cannot."""

import numpy as np
import pytest
from example_runs import run_example, summary
from scipy import stats
from studies import bimodal_study as study

from spread_analysis.reference import bimodal_posterior


def run(backend, output, *options):
    """What the program printed, and its results by loss and scale."""
    done = run_example("bimodal_posterior", backend, output, *options)
    assert "FalseEvidenceWarning" not in done.stderr
    return done.stdout, summary(output)["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    stdout, runs = run(backend, tmp_path / "out", "--smoke-test")
    assert list(runs) == [f"{name}, s = 0.5, x = 1" for name in study.LOSSES]
    for name, (result,) in runs.items():
        assert f"{result['gap']:+.4f} / {result['positive']:.3f}" in stdout
        if not name.startswith("normal"):  # hardly moved from the prior, which has both halves
            assert 0.4 < result["positive"] < 0.6
            # The prior is 1.44 nats away; without a warm-up the first steps may lead further, and
            # AutoImplicit starts at an estimate of it.
            most = 2.5 if name.startswith(("semi", "automatic")) else 1.6
            assert 0.2 < result["kl"] < most
            assert -1.25 * most < result["gap"] < 0.1
    assert (tmp_path / "out" / "bimodal_posterior.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_both_modes_and_the_evidence(backend, tmp_path):
    _, runs = run(backend, tmp_path, "--losses", "adaptive", "normal", "--seed", "20")
    for scale in ("0.5", "0.25"):
        (adaptive,) = runs[f"adaptive, s = {scale}, x = 1"]
        assert 0.45 < adaptive["positive"] < 0.55
        assert 0.9 < adaptive["spread"] < 1.1
        (normal,) = runs[f"normal, s = {scale}, x = 1"]
        assert min(normal["positive"], 1 - normal["positive"]) < 0.05
    assert abs(runs["adaptive, s = 0.5, x = 1"][0]["gap"]) < 0.02
    assert runs["normal, s = 0.5, x = 1"][0]["gap"] == pytest.approx(-0.548, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_five_observations_by_one_setting(backend, tmp_path):
    observed = ["0.25", "0.5", "1", "1.5", "2"]
    _, runs = run(
        backend, tmp_path, "--losses", "automatic", "--scales", "0.5", "--observed", *observed
    )
    for x in observed:
        (result,) = runs[f"automatic, s = 0.5, x = {x}"]
        assert 0.45 < result["positive"] < 0.55
        assert 0.9 < result["spread"] < 1.1


def test_judge_knows_the_exact_posterior():
    exact = bimodal_posterior(0.5)
    levels = (np.arange(100_000) + 0.5) / 100_000
    mass = np.cumsum(exact.density) * (exact.grid[1] - exact.grid[0])
    draws = np.random.default_rng(0).permutation(np.interp(levels, mass, exact.grid))
    result = study.judge(study.Fit(draws, [exact.log_evidence - 0.1] * 3), study.Case(0.5, 1.0))
    assert result.kl == pytest.approx(0.0, abs=3e-3)
    assert result.gap == pytest.approx(-0.1)
    assert result.mean_abs == pytest.approx(exact.mean_abs, abs=2e-3)
    assert result.positive == pytest.approx(0.5, abs=2e-3)
    assert result.spread == pytest.approx(1.0, abs=2e-3)


def test_judge_measures_a_normal_guide():
    """Against the KL divergence in closed form up to the evidence."""
    z = stats.norm(0.9, 0.3).ppf((np.arange(100_000) + 0.5) / 100_000)
    result = study.judge(study.Fit(z, [0.0, 0.0]), study.Case(0.5, 1.0))
    second, fourth = 0.9**2 + 0.3**2, 0.9**4 + 6 * 0.9**2 * 0.3**2 + 3 * 0.3**4
    log_joint = -0.5 * second - (fourth - 2 * second + 1) / (2 * 0.25) - np.log(2 * np.pi * 0.5)
    kl = bimodal_posterior(0.5).log_evidence - log_joint - stats.norm(0.9, 0.3).entropy()
    assert result.kl == pytest.approx(kl, abs=5e-3)
