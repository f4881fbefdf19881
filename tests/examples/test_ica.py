# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The ICA examples run in both backends; the EM baseline is right, and freezes for its reason."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from studies.ica import laplace_ica, laplace_ica_em, laplace_source_moments, spread_scale

from spread_analysis.reference import mean_relative_error

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    script = ROOT / "examples" / backend / "ica.py"
    done = subprocess.run(
        [sys.executable, str(script), "--smoke-test", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    over_noise = re.search(r"^ +0\.05 .*$", done.stdout, re.M)
    assert over_noise, done.stdout
    start, em, _, spread_em, elbo = map(float, re.findall(r"(\S+) \+-", over_noise[0]))
    assert em > 0.5
    assert max(spread_em, elbo) < 0.6 * start
    assert (tmp_path / "out" / "ica.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 3.0])
def test_moments_against_a_grid(scale):
    rng = np.random.default_rng(0)
    mixing = rng.uniform(-1, 1, (4, 2))
    y = rng.laplace(scale=0.5**0.5, size=2) @ mixing.T + scale * rng.standard_normal(4)
    moments = laplace_source_moments(y[None], mixing, scale, num_points=4096)

    # Wide enough for the likelihood and no wider than the prior needs.
    width = 8 * scale * np.sqrt(np.diag(np.linalg.inv(mixing.T @ mixing)))
    axes = [
        np.linspace(max(m - w, -25), min(m + w, 25), 1601)
        for m, w in zip(moments.mean[0], width, strict=True)
    ]
    z = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    log_joint = -0.5 * np.square(y - z @ mixing.T).sum(-1) / scale**2
    log_joint -= 2 * np.log(2 * np.pi * scale**2) + np.sqrt(2) * np.abs(z).sum(-1) + np.log(2)
    weight = np.exp(log_joint - log_joint.max())
    evidence = weight.sum() * np.prod([a[1] - a[0] for a in axes])
    weight /= weight.sum()
    # Half a percent of the prior's unit variance: what 4096 points give at the widest scale.
    np.testing.assert_allclose(moments.mean[0], weight @ z, atol=5e-3)
    np.testing.assert_allclose(moments.second, (z * weight[:, None]).T @ z, atol=5e-3)
    np.testing.assert_allclose(
        moments.log_evidence[0], np.log(evidence) + log_joint.max(), atol=5e-3
    )


def test_em_learns_with_output_noise_and_freezes_without():
    errors, moves = {}, {}
    for g in (0.5, 0.001):
        rng = np.random.default_rng(1)
        x, mixing = laplace_ica(rng, 4, 2, 1000, g)
        path = laplace_ica_em(x, rng.uniform(-1, 1, (4, 2)), g, num_steps=100)
        errors[g] = mean_relative_error(path[-1], mixing, "norm")
        moves[g] = np.linalg.norm(path[3] - path[2]) / np.linalg.norm(path[2])
    assert errors[0.5] < 0.1
    assert errors[0.001] > 0.5
    # The posterior narrows to a point and the step shrinks with its variance.
    assert moves[0.001] < 1e-3 * moves[0.5]


def test_em_increases_the_evidence():
    rng = np.random.default_rng(2)
    x, _ = laplace_ica(rng, 4, 2, 300, 0.3)
    path = laplace_ica_em(x, rng.uniform(-1, 1, (4, 2)), 0.3, num_steps=20, num_points=256)
    evidence = [laplace_source_moments(x, a, 0.3, 1024).log_evidence.mean() for a in path]
    assert (np.diff(evidence) > -2e-3).all()
    assert evidence[-1] > evidence[0] + 0.1


def test_spread_em_moves_without_output_noise():
    rng = np.random.default_rng(1)
    x, mixing = laplace_ica(rng, 4, 2, 1000, 1e-6)
    path = laplace_ica_em(x, rng.uniform(-1, 1, (4, 2)), 1e-6, 0.3, num_steps=200, rng=rng)
    assert mean_relative_error(path[-50:].mean(0), mixing, "norm") < 0.12


def test_spread_em_needs_a_source_of_noise():
    with pytest.raises(ValueError, match="rng"):
        laplace_ica_em(np.ones((2, 2)), np.ones((2, 1)), 0.1, 0.3)


def test_spread_scale():
    assert spread_scale([[1.0], [-1.0]]) == 1e-3
    assert spread_scale([[2.0]]) == 5.0
