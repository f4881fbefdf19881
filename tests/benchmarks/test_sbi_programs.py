# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of programs beside NUTS: resumed, failures kept, differences counted right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    """Modules are imported as in the folder of benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run it without its processes; which units were worked on."""
    import sbi_programs

    asked = []

    def work(args, store, unit, common):
        asked.append((unit["kind"], unit["program"], unit.get("backend")))
        if unit["kind"] == "reference":
            np.savez(sbi_programs.sets_of(args, unit["program"]), np.zeros(8))
            for number in set(range(unit["num_sets"] + 1)) - set(unit["done"]):
                store.add(common | reference(number))
            return
        error = "ValueError: it diverged" if unit["backend"] == "pyro" else None
        if not error:
            store.add(common | {"kind": "training", "cpu": 3.0})
        store.add(common | {"kind": "end", "error": error})

    monkeypatch.setattr(sbi_programs, "work", work)

    def once(*options):
        asked.clear()
        argv = ["sbi_programs.py", "--smoke", "--output", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", argv)
        sbi_programs.main()
        return list(asked)

    once.output = tmp_path
    return once


def reference(number, **moments):
    moments = moments or {"mu": [1.0, 2.0], "tau": [0.0, 1.0]}
    return {
        "kind": "reference",
        "set": number,
        "moments": moments,
        "errors": dict.fromkeys(moments, 0.01),
        "r_hat": 1.001,
        "divergences": 2,
        "form": "non-centred",
        "cpu": 5.0,
    }


def test_a_killed_run_goes_on_where_it_was(run, capsys):
    assert run() == [
        ("reference", "eight_schools", None),
        ("training", "eight_schools", "numpyro"),
        ("training", "eight_schools", "pyro"),
    ]
    assert "Pyro, seed 0 | failed: ValueError: it diverged |" in capsys.readouterr().out
    assert run() == []
    file = run.output / "programs.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    # Killed while it wrote how the last training ended.
    file.write_text("".join(lines[:-1]) + lines[-1][:20])
    assert run() == [("training", "eight_schools", "pyro")]
    # Without the data sets nothing can be compared with.
    (run.output / "sets-eight_schools.npz").unlink()
    assert run() == [("reference", "eight_schools", None)]


def test_the_tables_of_the_documentation_are_replaced(run):
    run("--docs", str(run.output))
    text = (run.output / "sbi_programs.inc").read_text()
    assert text.startswith("<!-- Written by benchmarks/sbi_programs.py --docs docs: do not edit")
    assert text.endswith((run.output / "programs.md").read_text())


def test_differences_are_counted_in_posterior_standard_deviations():
    from programs_tables import tables

    unit = {"program": "eight_schools", "backend": "numpyro", "num_simulations": 10_000, "seed": 0}
    unknown = reference(1)
    unknown["errors"]["tau"] = 0.04  # NUTS does not know it either
    rows = [
        {"program": "eight_schools", **reference(0)},
        {"program": "eight_schools", **unknown},
        {**unit, "kind": "training", "cpu": 30.0},
        {**unit, "kind": "draws", "set": 0, "moments": {"mu": [1.2, 2.0], "tau": [0.0, 1.2]},
         "refined": {"mu": [1.0, 2.0], "tau": [0.0, 1.0]}, "pareto_k": 0.3, "error": None},
        {**unit, "kind": "draws", "set": 1, "moments": {"mu": [1.5, 1.8], "tau": [9.0, 9.0]},
         "error": "ValueError: no density"},
        {**unit, "kind": "check", "p_values": {"sbc": 0.25}},
        {**unit, "kind": "end", "error": None},
    ]  # fmt: skip
    text = tables(rows)
    # Off by .1, 0 and .25; the second has a wrong standard deviation, the third a wrong mean.
    first = (
        "| NumPyro, seed 0 | 2; 3 | 0.100 | 0.250 (0.100) | 0.90 to 1.20 (1.00 to 1.20) | 33 % |"
    )
    assert f"{first} – | 0.25 | 30 |" in text
    assert "importance (1 failed: ValueError: no density) | 1; 2 | 0.000 | 0.000 (0.000)" in text
    assert "| 100 % | 0.30, at most 0.30 |" in text
    nuts = "| eight_schools | 2 | 2 | 0.0100 | 0.040 | 1 of 4 | 1.001 | 4 | 10 |"
    assert nuts in text


def test_positive_latents_are_compared_by_their_logarithms():
    from programs_data import PROGRAMS, moments

    tau = np.exp([-1.0, 1.0])
    theta = np.stack([np.full(8, 2.0), np.full(8, 6.0)])
    found = moments(PROGRAMS["eight_schools"], {"tau": tau, "theta": theta})
    assert found["tau"] == pytest.approx((0.0, 1.0))
    assert found["theta[7]"] == pytest.approx((4.0, 2.0))
    draws = {"mu": np.ones(2), "tau": np.full(2, 2.0), "theta": theta}
    back = PROGRAMS["eight_schools_noncentred"].back(draws)
    np.testing.assert_allclose(back["theta_base"][:, 0], [0.5, 2.5])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    for name in (backend, "numpyro", "sklearn"):  # NUTS is NumPyro's
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    script = str(BENCHMARKS / "sbi_programs.py")
    options = ["--smoke", "--backends", backend, "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "programs.jsonl").read_text().splitlines()]
    assert [row["error"] for row in rows if row["kind"] == "end"] == [None]
    kinds = [row["kind"] for row in rows]
    assert kinds == ["reference", "reference", "training", "draws", "draws", "check", "end"]
    # With 300 simulations: nearer to NUTS than the prior, whose means are all 0.
    real = next(row for row in rows if row["kind"] == "draws" and row["set"] == 0)
    nuts = {name: own for name, own in rows[0]["moments"].items() if name != "tau"}
    off = [abs(real["moments"][name][0] - mean) / sd for name, (mean, sd) in nuts.items()]
    assert np.mean(off) < 0.6 * np.mean([abs(mean) / sd for mean, sd in nuts.values()])
