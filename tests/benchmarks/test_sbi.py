# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of amortised posteriors: resumed, scored once, failures kept, tables right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """``sbi_run`` and ``sbi_scores``, imported as in the folder of benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sbi_run
    import sbi_scores

    return sbi_run, sbi_scores


@pytest.fixture
def run(modules, monkeypatch, tmp_path):
    """Run it in this process with ``options``; what was trained, and what was scored."""
    sbi_run, sbi_scores = modules
    trained, scored = [], []
    failing = set()

    def train(unit, timeout):
        trained.append((unit["task"], unit["seed"], unit["method"]))
        if unit["method"] in failing:
            return {"error": "RuntimeError: it diverged"}
        task = sbi_run.SBI_TASKS[unit["task"]]
        rng = np.random.default_rng(unit["seed"])
        numbers = sbi_run.available(task, unit["data_dir"])
        draws = {str(k): task.draw_prior(rng, unit["num_draws"]) for k in numbers}
        Path(unit["draws"]).parent.mkdir(parents=True, exist_ok=True)
        np.savez(unit["draws"], **draws)
        return {"error": None, "seconds": 2.0, "cpu": 1.0}

    def score_all(jobs, num_processes):
        for job in jobs:
            scored.append((job.task, job.observation))
            yield job, sbi_scores.score(job)

    monkeypatch.setattr(sbi_run, "train", train)
    monkeypatch.setattr(sbi_run, "score_all", score_all)
    monkeypatch.setattr(sbi_scores, "c2st", lambda reference, draws: 0.625)

    def once(*options):
        trained.clear()
        scored.clear()
        args = ["--smoke", "--methods", "prior", "exact", "--output", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", ["sbi_run.py", *args])
        sbi_run.main()
        return list(trained), list(scored)

    once.failing, once.scores, once.output = failing, sbi_scores, tmp_path
    return once


def test_a_killed_run_goes_on_where_it_was(run):
    trained, scored = run()
    assert len(trained) == 4  # two tasks, two methods
    assert len(scored) == 12  # at three observations each
    assert run() == ([], [])
    file = run.output / "results.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 16
    # Killed while it wrote the score of the last observation.
    file.write_text("".join(lines[:-1]) + lines[-1][:20])
    assert run() == ([], [("gaussian_mixture", 3)])
    assert len(file.read_text().splitlines()) == 16
    # Without its draws a training has to be repeated, and its scores with it.
    next((run.output / "draws").glob("gaussian_linear-300-0-exact*")).unlink()
    trained, scored = run()
    assert trained == [("gaussian_linear", 0, "exact")]
    assert scored == [("gaussian_linear", k) for k in (1, 2, 3)]


def test_costly_scores_can_be_fewer_and_be_made_up_for(run):
    _, scored = run("--costly-observations", "1")
    assert scored.count(("gaussian_linear", 1)) == 2
    assert ("gaussian_linear", 2) not in scored
    assert ("gaussian_mixture", 3) in scored
    trained, scored = run()
    assert trained == []
    assert set(scored) == {("gaussian_linear", 2), ("gaussian_linear", 3)}


def test_scores_are_remembered_by_both_samples(run, monkeypatch):
    run("--tasks", "gaussian_mixture")
    (run.output / "results.jsonl").unlink()

    def fail(reference, draws):
        raise AssertionError("scored again")

    monkeypatch.setattr(run.scores, "c2st", fail)
    _, scored = run("--tasks", "gaussian_mixture")
    assert len(scored) == 6
    one, other = np.zeros((3, 2)), np.ones((3, 2))
    keys = {run.scores.fingerprint(*pair) for pair in [(one, other), (other, one), (one, one)]}
    assert len(keys) == 3
    assert run.scores.fingerprint(one, other) == run.scores.fingerprint(one.copy(), other)
    assert run.scores.fingerprint(one.reshape(2, 3), one) != run.scores.fingerprint(one, one)


def test_draws_that_are_no_numbers_are_told_apart(run, monkeypatch):
    run("--tasks", "gaussian_mixture", "--methods", "prior")
    (path,) = (run.output / "draws").glob("*")
    np.savez(path, **{str(k): np.full((100, 2), np.nan) for k in (1, 2, 3)})
    job = run.scores.Job("gaussian_mixture", 1, str(path), None, str(run.output / "c2st"))
    assert run.scores.score(job) == 1.0


def test_a_failed_training_is_a_result(run, capsys):
    run.failing.add("exact")
    _, scored = run("--tasks", "gaussian_mixture")
    assert len(scored) == 3
    assert "| gaussian_mixture | .625 ± .000 | 1 failed |" in capsys.readouterr().out
    assert run("--tasks", "gaussian_mixture") == ([], [])
    run.failing.clear()
    trained, scored = run("--tasks", "gaussian_mixture", "--retry")
    assert trained == [("gaussian_mixture", 0, "exact")]
    assert len(scored) == 3
    assert "failed" not in capsys.readouterr().out.splitlines()[-2]


def test_the_reason_of_a_failure_is_kept(modules, tmp_path):
    sbi_run, _ = modules
    args = sbi_run.parse_args(
        ["--smoke", "--tasks", "gaussian_mixture", "--methods", "exact", "--output", str(tmp_path)]
    )
    (unit,) = sbi_run.units(args, "gaussian_mixture")
    assert sbi_run.train(unit | {"task": "sir"}, 60) == {
        "error": "ValueError: the posterior of sir has no closed form"
    }
    assert sbi_run.train(unit, 0.01) == {"error": "not ready after 0 s"}


def rows(task, method, scores, cpu, num_simulations=10_000):
    """A training and its scores for every seed; None is a failure."""
    for seed, values in enumerate(scores):
        unit = {"task": task, "method": method, "seed": seed, "num_simulations": num_simulations}
        error = None if values else "it diverged"
        yield {"kind": "training", **unit, "error": error, "cpu": cpu}
        for observation, value in enumerate(values or ()):
            yield {"kind": "c2st", **unit, "observation": observation, "c2st": value}


@pytest.fixture
def tables(modules):
    from sbi_tables import tables

    return tables


def test_tables_stand_beside_the_published_figures(tables):
    text = tables(
        [
            *rows("sir", "numpyro", [[0.60, 0.62], [0.56, 0.58]], 20.0),
            *rows("slcp", "numpyro", [[0.95, 0.93], None], 30.0),
        ]
    )
    # Means of the seeds are .61 and .57.
    assert "| sir | .590 ± .028 | .680 | .561 |" in text
    assert "| slcp | .940 ± .014 (1 failed) | .901 | .845 |" in text
    assert "| mean | .765 | .790 | .703 |" in text
    assert "NumPyro: at most the published NPE on 1 of 2 (above it: slcp)." in text
    assert "On the same" not in text


@pytest.mark.parametrize(("score", "verdict"), [(0.67, "met"), (0.69, "missed")])
def test_the_mean_over_all_tasks_has_a_target(modules, tables, score, verdict):
    found = [row for name in modules[0].SBI_TASKS for row in rows(name, "pyro", [[score]], 1.0)]
    assert f"the mean is to be at most .680: {verdict}." in tables(found)
    # Not if a task is missing, nor if all its seeds failed.
    assert "the mean is to be" not in tables(found[2:])
    first = {**found[0], "error": "it diverged"}
    assert "missed" in tables([first, *found[2:]])


def test_the_tables_of_the_documentation_are_replaced(run):
    run("--docs", str(run.output))
    text = (run.output / "sbi_results.inc").read_text()
    assert text.startswith("<!-- Written by benchmarks/sbi_run.py --docs docs: do not edit. -->")
    assert text.endswith((run.output / "tables.md").read_text())


def test_a_task_that_failed_is_not_left_out_of_the_verdict(tables):
    text = tables(rows("sir", "pyro", [None, None], 1.0))
    assert "| sir | 2 failed | .680 | .561 |" in text
    assert "Pyro: at most the published NPE on 0 of 1 (above it: sir)." in text


def test_ours_is_compared_with_the_better_method_of_sbi(tables):
    text = tables(
        [
            *rows("sir", "numpyro", [[0.60], [0.58]], 20.0),
            *rows("sir", "pyro", [[0.75], [0.75]], 20.0),
            *rows("sir", "sbi-npe", [[0.70], [0.72]], 50.0),
            *rows("sir", "sbi-nsf", [[0.61], [0.59]], 90.0),
        ]
    )
    assert "NumPyro: -0.010 (no worse within 2 x 0.014), 0.22 of its CPU seconds, met" in text
    assert "Pyro: +0.150 (worse within 2 x 0.010), 0.22 of its CPU seconds, missed" in text
    assert "| .710 ± .014; 50 | .600 ± .014; 90 |" in text


@pytest.mark.parametrize(("score", "words"), [(0.60, "no worse by"), (0.58, "worse by")])
def test_of_a_single_score_the_error_is_not_known(tables, score, words):
    ours, theirs = rows("sir", "numpyro", [[0.60]], 20.0), rows("sir", "sbi-npe", [[score]], 90.0)
    assert f"({words} one score), 0.22 of its CPU seconds" in tables([*ours, *theirs])


def test_budgets_have_tables_of_their_own(tables):
    text = tables(
        [
            *rows("sir", "numpyro", [[0.60]], 20.0),
            *rows("sir", "numpyro", [[0.70]], 20.0, num_simulations=1_000),
            *rows("sir", "numpyro", [[0.80]], 20.0, num_simulations=300),
        ]
    )
    assert text.index("at 300 simulations") < text.index("at 1,000") < text.index("at 10,000")
    assert "| sir | .800 ± – |\n" in text  # nothing was published for 300
    assert "| sir | .700 ± – | .815 | .638 |" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "sir"], "no posterior of sir is known in closed form: pass --data-dir"),
        (["--tasks", "sir", "--data-dir", "."], "no posterior of sir is known in ."),
        (["--tasks", "tides"], "invalid choice: 'tides'"),
    ],
)
def test_what_cannot_be_run_is_refused(modules, options, message, capsys):
    with pytest.raises(SystemExit):
        modules[0].parse_args(options)
    assert message in capsys.readouterr().err


def test_a_missing_library_is_named(modules, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        modules[0].parse_args(["--methods", "sbi-nsf"])
    assert "--methods sbi-nsf needs sbi, which is not installed" in capsys.readouterr().err


def test_amortize_stands_for_the_backends(modules):
    args = modules[0].parse_args(["--methods", "prior", "amortize", "--backends", "numpyro"])
    assert args.methods == ["prior", "numpyro"]
    assert args.tasks == [
        "gaussian_linear",
        "gaussian_linear_uniform",
        "gaussian_mixture",
        "two_moons",
    ]


@pytest.mark.slow
def test_controls_bound_every_score(tmp_path):
    """End to end in processes of their own: what learns nothing, and what need not learn."""
    command = [sys.executable, str(BENCHMARKS / "sbi_run.py"), "--smoke", "--output", str(tmp_path)]
    options = ["--methods", "prior", "exact", "--tasks", "gaussian_mixture", "--processes", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tables.md").read_text() in done.stdout
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    scores = {
        method: [row["c2st"] for row in found if row["kind"] == "c2st" and row["method"] == method]
        for method in ("prior", "exact")
    }
    # 200 points in five folds: the standard error of an accuracy is .035.
    assert len(scores["exact"]) == 3
    assert 0.35 < np.mean(scores["exact"]) < 0.65
    assert min(scores["prior"]) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_smoke(backend, tmp_path):
    for name in (backend, "sklearn"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    command = [sys.executable, str(BENCHMARKS / "sbi_run.py"), "--smoke", "--backends", backend]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    trainings = [row for row in found if row["kind"] == "training"]
    assert [row["task"] for row in trainings] == ["gaussian_linear", "gaussian_mixture"]
    assert all(row["error"] is None for row in trainings)
    # With 300 simulations: nearer to the posterior than the prior, which is at .85 and .95.
    scores = {(row["task"], row["observation"]): row["c2st"] for row in found if "c2st" in row}
    assert len(scores) == 6
    assert np.mean([v for (task, _), v in scores.items() if task == "gaussian_linear"]) < 0.8
    assert np.mean([v for (task, _), v in scores.items() if task == "gaussian_mixture"]) < 0.85
