# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""AVB beside a VAE: what is reported, and log p(x) of the decoders, which no critic measures."""

import importlib
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from example_runs import run_example, summary
from scipy.stats import norm
from studies import avb_vae_study as study

from spread_analysis.critic import EvidenceReport
from spread_analysis.datasets import load_dataset
from spread_analysis.log_evidence import LogEvidence


def run(backend, output, *options):
    """What the program printed, and its results by loss."""
    done = run_example("avb_vae", backend, output, *options)
    return done.stdout, summary(output)["runs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "losses", "num_ais"),
    [
        ("pyro", ["vae", "iwae", "exact", "avb", "avb-plain", "semi-implicit"], 2),
        ("pyro --compile", ["avb"], 0),
        # Compiled programs by the dozen: no more than each loss needs.
        ("numpyro", ["vae", "exact", "avb"], 0),
        pytest.param("numpyro", ["iwae"], 0, marks=pytest.mark.slow),
        pytest.param("numpyro", ["semi-implicit"], 2, marks=pytest.mark.slow),
    ],
)
def test_smoke(backend, losses, num_ais, tmp_path):
    backend, *compiles = backend.split()
    options = ["--smoke-test", "--num-ais", str(num_ais), *compiles, "--losses", *losses]
    stdout, runs = run(backend, tmp_path / "out", *options)
    assert list(runs) == losses
    for name, (result,) in runs.items():
        assert f"{result['log_p']:.2f}" in stdout
        # Hardly trained: about as good as pixels of probability one half.
        assert -64 * np.log(2) - 1 < result["log_p"] < -20
        assert abs(result["estimate"] - result["log_p"]) < 10
        assert np.isfinite(result["gap"]) == name.startswith("avb")
        if name.startswith("avb"):  # a bound on log p(x) that no critic is part of
            assert result["log_p"] - 10 < result["exact"] < result["log_p"] + 0.2
        else:
            assert np.isnan(result["exact"])
        assert np.isfinite(result["ais_difference"]) == bool(num_ais)
        if "vae" in losses:
            difference = result["log_p"] - runs["vae"][0]["log_p"]
            assert result["difference"] == pytest.approx(difference, abs=1e-4)
    assert (tmp_path / "out" / "avb_vae.png").read_bytes().startswith(b"\x89PNG")


def bend_in_pyro(load):
    torch, example = load("torch"), load("avb_vae")
    torch.manual_seed(0)
    bend = example.Bend(5, 16, 8)
    with torch.no_grad():
        for param in bend.parameters():
            param.add_(0.3 * torch.randn_like(param))
    loc, scale, features, eps = torch.randn(8), torch.rand(8) + 0.5, torch.randn(5), torch.randn(8)
    draw = partial(bend, loc, scale, features)
    jacobian = torch.autograd.functional.jacobian(draw, eps)
    log_prob = partial(bend.log_prob, loc, scale, features)
    codes = draw(eps).detach().requires_grad_()
    along = example.along_path(log_prob, codes)
    slopes = [torch.autograd.grad(value, codes)[0] for value in (along, log_prob(codes))]
    return [each.detach().numpy() for each in (eps, jacobian, along, *slopes)]


def bend_in_numpyro(load):
    jax, example = load("jax"), load("avb_vae")
    *keys, moved = jax.random.split(jax.random.key(0), 5)
    loc, scale, features, eps = map(jax.random.normal, keys, [(8,), (8,), (5,), (8,)])
    bend, seen = example.Bend(16, (4, 4)), (loc, jax.numpy.exp(scale), features)
    params = bend.init(moved, *seen, eps)
    params = jax.tree.map(lambda v: v + 0.3 * jax.random.normal(moved, v.shape), params)
    draw = partial(bend.apply, params, *seen)
    log_prob = partial(draw, method="log_prob")
    codes = draw(eps)
    along, slope = jax.value_and_grad(partial(example.along_path, log_prob))(codes)
    return eps, jax.jacobian(draw)(eps), along, slope, jax.grad(log_prob)(codes)


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_the_density_of_bent_codes(backend, monkeypatch):
    pytest.importorskip(f"{backend}_spread")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / backend))
    monkeypatch.delitem(sys.modules, "avb_vae", raising=False)
    bend = {"pyro": bend_in_pyro, "numpyro": bend_in_numpyro}[backend]
    eps, jacobian, along, slope, slope_of_density = bend(importlib.import_module)
    monkeypatch.delitem(sys.modules, "avb_vae")
    expected = norm.logpdf(eps).sum() - np.linalg.slogdet(jacobian)[1]
    assert along == pytest.approx(expected, abs=1e-4)
    np.testing.assert_allclose(slope, slope_of_density, rtol=1e-4)


def fit(values, **changes):
    """The end of a run with these log p(x)."""
    values = np.asarray(values, np.float64)
    whole = {
        "estimate": -3.0,
        "exact": float("nan"),
        "evidence": LogEvidence(values, np.full(3, 0.1), np.array([7.0, 2.0, 9.0]), 10),
        "ais": None,
        "check": None,
        "warned": (),
        "reconstructions": np.full((8, 4), 0.5),
        "samples": np.full((8, 4), 0.5),
        "seconds": 1.5,
    }
    return study.Fit(**whole | changes)


def test_judge_pairs_images():
    vae, other = fit([-1.0, -10.0, -100.0]), fit([-1.5, -10.1, -100.6])
    result = study.judge(other, vae, 2)
    assert result.log_p == pytest.approx(-112.2 / 3)
    assert result.difference == pytest.approx(-0.4)
    # Unpaired it would be 31.
    assert result.difference_error == pytest.approx(np.std([0.5, 0.1, 0.6], ddof=1) / 3**0.5)
    assert result.effective_samples == 2.0
    assert np.isnan([result.gap, result.fresh_estimate, result.ais_difference]).all()
    assert np.isnan(study.judge(other, None, 2).difference)


def test_judge_divides_a_check_by_the_images_that_it_sums_over():
    check = EvidenceReport(-200.0, -260.0, 60.0, 4.0, 50)
    result = study.judge(fit([-1.0, -2.0, -3.0], check=check), None, 20)
    assert (result.fresh_estimate, result.gap, result.gap_error) == (-13.0, 3.0, 0.2)


def test_judge_compares_ais_on_the_images_that_have_both():
    annealed = LogEvidence(np.array([-1.2, -2.2]), np.full(2, 0.3), np.full(2, 4.0), 8)
    values, error = np.array([-1.0, -2.0, -30.0]), np.full(3, 0.1)
    even = LogEvidence(values, error, np.array([7.0, 6.0, 9.0]), 10)
    result = study.judge(fit(values, evidence=even, ais=annealed), None, 20)
    assert result.ais_difference == pytest.approx(-0.2)
    assert result.ais_error == pytest.approx(np.hypot(0.1, 0.3) / 2**0.5)
    # Two effective samples of ten make a lower bound, of which there is no error.
    assert np.isnan(study.judge(fit(values, ais=annealed), None, 20).ais_error)


def test_images_are_zeros_and_ones_and_every_run_has_the_same():
    args = study.parse_args("pyro", "", ["--limit", "300"])
    images = study.load_images(args)
    assert (images.train.shape, images.test.shape, images.shape) == ((240, 64), (60, 64), (8, 8))
    assert set(np.unique(images.train)) == {0.0, 1.0}
    assert images.train.dtype == np.float32
    np.testing.assert_array_equal(images.test, study.load_images(args).test)
    # Black and white pixels stay, grey ones are drawn: the mean is that of the grey values.
    grey = load_dataset("digits", held_out=0.2, limit=300).train_images.reshape(240, -1)
    assert not images.train[grey == 0].any()
    assert images.train[grey == 1].all()
    assert abs(images.train.mean() - grey.mean()) < 0.01


def test_missing_data_are_named(tmp_path):
    args = study.parse_args("pyro", "", ["--dataset", "mnist", "--data-dir", str(tmp_path / "no")])
    with pytest.raises(SystemExit, match="there is no folder"):
        study.load_images(args)


def test_options():
    args = study.parse_args("numpyro", "", ["--dataset", "mnist", "--data-dir", "d", "-n", "7000"])
    assert (args.num_steps, args.hidden_dim) == (7000, study.PRESETS["mnist"].hidden_dim)
    assert args.held_out == 0.1
    assert study.parse_args("pyro", "", ["--num-ais", "0"]).num_ais == 0
    with pytest.raises(SystemExit):
        study.parse_args("pyro", "", ["-n", "1"])


def test_batches_go_through_every_image_before_any_comes_back():
    indices = study.batches(10, 5, 7, seed=3)
    assert indices.shape == (7, 5)
    for epoch in range(3):
        np.testing.assert_array_equal(
            np.sort(indices[2 * epoch : 2 * epoch + 2].ravel()), range(10)
        )
    np.testing.assert_array_equal(indices, study.batches(10, 5, 7, seed=3))
    assert (indices != study.batches(10, 5, 7, seed=4)).any()


def test_table_and_warning(tmp_path, capsys):
    args = study.parse_args("pyro", "", ["--losses", "avb-plain", "vae", "--output", str(tmp_path)])
    args.num_checked = 10
    images = study.Images(np.zeros((9, 4), np.float32), np.zeros((8, 4), np.float32), (2, 2))
    check = EvidenceReport(-200.0, -260.0, 60.0, 4.0, 50)
    fits = {
        "vae": fit([-1.0, -2.0, -3.0]),
        "avb-plain": fit(
            [-4.0, -5.0, -6.0], exact=-7.0, check=check, warned=("FalseEvidenceWarning",)
        ),
    }
    asked = []

    def fit_model(name, seed, wants_ais):
        asked.append((name, seed, wants_ais))
        return fits[name]

    args.num_seeds = 2
    study.compare("pyro", args, images, fit_model)
    # The VAE first, for the difference; AIS for the first seed only.
    assert asked == [("vae", 0, True), ("avb-plain", 0, True), ("vae", 1, False),
                     ("avb-plain", 1, False)]  # fmt: skip
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("AVB, plain"))
    cells = ["-5.00", "-3.00", "0.00", "-3.00", "+4.00", "+6.00 ± 0.40", "false evidence", "2"]
    assert re.split(r"\s{2,}", row) == ["AVB, plain contrast", *cells]
