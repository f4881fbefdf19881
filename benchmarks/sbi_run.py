# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Amortised posteriors of the ten tasks of the benchmark of simulation-based inference.

    python benchmarks/sbi_run.py --data-dir sbibm --output sbi-output
    python benchmarks/sbi_run.py --data-dir sbibm --methods numpyro sbi-npe --tasks sir --seeds 0
    python benchmarks/sbi_run.py --smoke                # tiny, no data; its numbers mean nothing

Every finished training and every score is a line of ``results.jsonl``; a run that was killed goes
on where it was. At the end, and by ``--tables-only`` at once, come the tables.
benchmarks/README.md says what is measured and where the data are.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sbi_methods import LIBRARIES, METHODS
from sbi_scores import Job, score_all
from sbi_tables import tables
from studies.sbi_tasks import SBI_TASKS
from studies.sbi_tasks.observations import available

Row = dict[str, Any]
# From here a score takes minutes.
MANY_DIMS = 10
#: A page of the documentation includes this file, which is not a separate page.
DOCS_FILE = "sbi_results.inc"
_UNIT = ("task", "num_simulations", "seed", "method", "num_draws", "reference")


def main() -> None:
    args = parse_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"  # of the processes that train and score
    args.output.mkdir(parents=True, exist_ok=True)
    results = Results(args.output / "results.jsonl")
    if not args.tables_only:
        run(args, results)
    text = tables(results.rows)
    (args.output / "tables.md").write_text(text)
    if args.docs:
        comment = "<!-- Written by benchmarks/sbi_run.py --docs docs: do not edit. -->"
        (args.docs / DOCS_FILE).write_text(f"{comment}\n\n{text}")
    print(text)


def run(args: argparse.Namespace, results: Results) -> None:
    """Train and score what is not there yet, task by task."""
    for name in args.tasks:
        task_units = list(units(args, name))
        for unit in task_units:
            done = results.find("training", unit)
            # A failure is a result: whether to try again needs to be said.
            if done and (not args.retry if done["error"] else Path(unit["draws"]).exists()):
                continue
            row = train(unit, args.timeout)
            results.add({"kind": "training", **{key: unit[key] for key in _UNIT}, **row})
        score(args, results, task_units)


def units(args: argparse.Namespace, name: str) -> Iterator[Row]:
    """What is trained for a task: every method on the same simulations, seed by seed."""
    for seed in args.seeds:
        for method in args.methods:
            reference = "files" if args.data_dir else "closed"
            values = name, args.num_simulations, seed, method, args.num_draws, reference
            draws = args.output / "draws" / f"{'-'.join(map(str, values))}.npz"
            yield {
                **dict(zip(_UNIT, values, strict=True)),
                "data_dir": args.data_dir and str(args.data_dir.resolve()),
                "draws": str(draws.resolve()),
            }


def train(unit: Row, timeout: float) -> Row:
    """Train in a process of its own; a failure is a result too."""
    print(f"{unit['task']}, {unit['method']}, seed {unit['seed']}: training", flush=True)
    Path(unit["draws"]).parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("sbi_worker.py")), json.dumps(unit)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"not ready after {timeout:.0f} s"}
    if done.returncode:
        # Below the traceback, if it came that far.
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        print(f"  failed: {last}", flush=True)
        return {"error": last}
    row = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {row['cpu']:.1f} CPU s", flush=True)
    return {"error": None, **row}


def score(args: argparse.Namespace, results: Results, task_units: Iterable[Row]) -> None:
    """C2ST at every observation of every unit that was trained."""
    jobs = {}
    for unit in task_units:
        training = results.find("training", unit)
        if training is None or training["error"]:
            continue
        task = SBI_TASKS[unit["task"]]
        numbers = available(task, unit["data_dir"])
        if task.dim >= MANY_DIMS:
            numbers = numbers[: args.costly_observations]
        for number in numbers:
            if results.find("c2st", unit | {"observation": number}):
                continue
            cache = str(args.cache_dir or args.output / "c2st")
            job = Job(unit["task"], number, unit["draws"], unit["data_dir"], cache)
            jobs[job] = unit
    for job, value in score_all(list(jobs), args.processes):
        unit = {key: jobs[job][key] for key in _UNIT}
        results.add({"kind": "c2st", **unit, "observation": job.observation, "c2st": value})
        what = f"{unit['task']} {job.observation}, {unit['method']}, seed {unit['seed']}"
        print(f"  {what}: {value:.3f}", flush=True)


class Results:
    """Rows in a file of JSON lines, written at once. Of equal units the last row counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[tuple[Any, ...], Row] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            try:
                self._keep(json.loads(line))
            except json.JSONDecodeError:  # the run was killed while it wrote this line
                continue
        if lines:
            path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def find(self, kind: str, unit: Row) -> Row | None:
        return self._rows.get(self._key({"kind": kind, **unit}))

    def add(self, row: Row) -> None:
        self._keep(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _keep(self, row: Row) -> None:
        if row["kind"] == "training":  # scores of an earlier training of this unit are void
            unit = self._key(row)[1:-1]
            void = [key for key in self._rows if key[0] == "c2st" and key[1:-1] == unit]
            for key in void:
                del self._rows[key]
        self._rows[self._key(row)] = row

    @staticmethod
    def _key(row: Row) -> tuple[Any, ...]:
        return (row["kind"], *(row[key] for key in _UNIT), row.get("observation"))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Amortised posteriors of the ten SBI tasks.")
    parser.add_argument("--tasks", nargs="+", choices=list(SBI_TASKS), help="all by default; "
                        "without data those with an exact posterior")  # fmt: skip
    parser.add_argument("--methods", nargs="+", choices=["amortize", *METHODS],
                        default=["amortize"], help="amortize stands for --backends, others need "
                        "their library")  # fmt: skip
    parser.add_argument("--backends", nargs="+", choices=("numpyro", "pyro"),
                        default=["numpyro", "pyro"], help="of amortize")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num-simulations", type=int, default=10_000)
    parser.add_argument("--num-draws", type=int, default=10_000, help="at each observation")
    parser.add_argument("--costly-observations", type=int, help="the most that are judged in ten "
                        "dimensions, where a score takes minutes; all by default")  # fmt: skip
    parser.add_argument("--data-dir", type=Path, help="folder of the benchmark's observations and "
                        "reference draws; left out, both are drawn here")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("sbi-output"))
    parser.add_argument("--cache-dir", type=Path, help="of scores; in the output by default")
    parser.add_argument("--processes", type=int, default=2, help="that score at a time")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for one training")
    parser.add_argument("--retry", action="store_true", help="train again what failed")
    parser.add_argument("--tables-only", action="store_true", help="from the results so far")
    parser.add_argument("--docs", type=Path, help="folder whose tables to replace")
    parser.add_argument("--smoke", action="store_true", help="tiny: does it run at all")
    args = parser.parse_args(argv)
    if args.smoke:
        args.tasks = args.tasks or ["gaussian_linear", "gaussian_mixture"]
        args.num_simulations, args.num_draws, args.seeds = 300, 100, [0]
    known = [name for name, task in SBI_TASKS.items() if available(task, args.data_dir)]
    args.tasks = args.tasks or known
    if lacking := set(args.tasks) - set(known):
        place = f"in {args.data_dir}" if args.data_dir else "in closed form: pass --data-dir"
        parser.error(f"no posterior of {', '.join(sorted(lacking))} is known {place}")
    listed = [m for name in args.methods for m in (args.backends if name == "amortize" else [name])]
    args.methods = list(dict.fromkeys(listed))
    for name in args.methods:
        if name in LIBRARIES and importlib.util.find_spec(LIBRARIES[name]) is None:
            parser.error(f"--methods {name} needs {LIBRARIES[name]}, which is not installed")
    return args


if __name__ == "__main__":
    main()
