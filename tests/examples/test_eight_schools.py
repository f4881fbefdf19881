# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The eight schools run in both backends; an implicit guide has both modes of tau."""

import numpy as np
import pytest
from example_runs import run_example, summary
from scipy import integrate
from studies import schools_study as study


def run(backend, output, *options):
    """What the program printed, and its results by method."""
    done = run_example("eight_schools", backend, output, *options)
    return done.stdout, summary(output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "methods"),
    [
        ("pyro", ["contrast", "semi-implicit", "normal"]),  # one of each kind
        ("numpyro", ["contrast"]),  # compiling the others takes half a minute
        pytest.param("numpyro", ["semi-implicit", "normal"], marks=pytest.mark.slow),
    ],
)
def test_smoke(backend, methods, tmp_path):
    stdout, found = run(backend, tmp_path / "out", "--smoke-test", "--methods", *methods)
    assert list(found) == methods
    for method, (result,) in found.items():
        assert study.METHODS[method] in stdout
        assert f"{100 * result['mean |tau|']:+.1f} %" in stdout
        if method != "normal":  # hardly moved from the prior, which has both halves
            assert 0.4 < result["P(tau > 0)"] < 0.6
    assert (tmp_path / "out" / "eight_schools.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_moments_and_both_modes(backend, tmp_path):
    _, found = run(backend, tmp_path, "--methods", "contrast", "normal", "--seed", "20")
    (contrast,), (normal,) = found["contrast"], found["normal"]
    for moment in ("mean mu", "sd mu", "mean |tau|", "sd |tau|"):
        assert abs(contrast[moment]) < study.TOLERANCE
    assert 0.45 < contrast["P(tau > 0)"] < 0.55
    assert abs(contrast["gap"]) < 0.05
    # The Normal is right about neither |tau| nor its sign.
    assert not 0.45 < normal["P(tau > 0)"] < 0.55 or abs(normal["mean |tau|"]) > 0.2


def test_errors_of_draws_from_the_exact_marginal():
    exact = study.exact()
    levels = (np.arange(200_000) + 0.5) / 200_000
    mass = integrate.cumulative_trapezoid(exact.tau_density, exact.tau_grid, initial=0)
    tau = np.interp(levels, mass / mass[-1], exact.tau_grid)
    mu = np.random.default_rng(0).normal(exact.mu_mean, exact.mu_sd, tau.shape)
    fit = study.Fit({"mu": mu, "tau": tau}, exact.log_evidence - 0.5)
    found = study.errors(fit)
    assert found["gap"] == pytest.approx(-0.5)
    assert found["P(tau > 0)"] == pytest.approx(0.5, abs=0.005)
    for moment in ("mean mu", "sd mu", "mean |tau|", "sd |tau|"):
        assert abs(found[moment]) < 0.01
    one_mode = study.errors(study.Fit({"mu": mu, "tau": np.abs(tau)}, 0.0))
    assert one_mode["P(tau > 0)"] == 1.0
    assert one_mode["sd |tau|"] == pytest.approx(found["sd |tau|"])
