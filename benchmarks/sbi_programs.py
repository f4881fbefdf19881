# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Amortised posteriors of programs that nobody wrote for them, beside NUTS.

    python benchmarks/sbi_programs.py --output sbi-output
    python benchmarks/sbi_programs.py --programs eight_schools --num-sets 3 --backends numpyro
    python benchmarks/sbi_programs.py --smoke             # tiny; its numbers mean nothing

Every result is a line of ``programs.jsonl``; a run that was killed goes on where it was. At the
end, and by ``--tables-only`` at once, come the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from programs_data import PROGRAMS
from programs_tables import tables

Row = dict[str, Any]
#: Pyro trains as NumPyro does: it is run on some.
IN_PYRO = ("eight_schools", "eight_schools_noncentred", "baseball")
#: A page of the documentation includes this file, which is not a separate page.
DOCS_FILE = "sbi_programs.inc"
_KEY = ("kind", "program", "backend", "num_simulations", "seed", "set")


def main() -> None:
    args = parse_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"  # of the processes that do the work
    args.output.mkdir(parents=True, exist_ok=True)
    store = Store(args.output / "programs.jsonl")
    if not args.tables_only:
        for program in args.programs:
            refer(args, store, program)
            for seed in args.seeds:
                for backend in args.backends:
                    if backend == "numpyro" or program in IN_PYRO:
                        train(args, store, program, backend, seed)
    text = tables(store.rows.values())
    (args.output / "programs.md").write_text(text)
    if args.docs:
        comment = "<!-- Written by benchmarks/sbi_programs.py --docs docs: do not edit. -->"
        (args.docs / DOCS_FILE).write_text(f"{comment}\n\n{text}")
    print(text)


class Store:
    """
    Rows in a file of JSON lines, written at once; of equal units the last row counts.

    :param path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[tuple[Any, ...], Row] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the run was killed while it wrote this line
                continue
            self.rows[self.key(row)] = row
        if self.rows:  # whole lines, to append to
            path.write_text("".join(json.dumps(row) + "\n" for row in self.rows.values()))

    @staticmethod
    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in _KEY)

    def add(self, row: Row) -> None:
        self.rows[self.key(row)] = row
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def refer(args: argparse.Namespace, store: Store, program: str) -> None:
    """NUTS on the data sets of a program."""
    num = min(args.num_sets, PROGRAMS[program].num_sets)
    done = [row["set"] for row in store.rows.values()
            if (row["kind"], row["program"]) == ("reference", program)]  # fmt: skip
    if len(done) <= num or not sets_of(args, program).exists():
        print(f"{program}: NUTS", flush=True)
        unit = {"kind": "reference", "num_sets": num, "num_reference": args.num_reference}
        work(args, store, unit | {"program": program, "done": done}, {"program": program})


def train(args: argparse.Namespace, store: Store, program: str, backend: str, seed: int) -> None:
    """Train once, and draw for all data sets."""
    common = {"program": program, "backend": backend, "seed": seed,
              "num_simulations": args.num_simulations}  # fmt: skip
    if Store.key({"kind": "end", **common}) in store.rows:
        return
    print(f"{program}, {backend}, {args.num_simulations:,}, seed {seed}: training", flush=True)
    unit = {
        "kind": "training",
        **common,
        "num_draws": args.num_draws,
        "num_proposals": 4 * args.num_draws,
        "num_chains_for": args.num_chains_for,
        "num_checks": args.num_checks,
    }
    work(args, store, unit, common)


def work(args: argparse.Namespace, store: Store, unit: Row, common: Row) -> None:
    """Run a unit in a process of its own and keep what it says, and how it ended."""
    unit = unit | {"sets": str(sets_of(args, unit["program"]).resolve())}
    worker = str(Path(__file__).with_name("programs_worker.py"))
    errors = args.output / "programs.stderr"
    with errors.open("w") as stderr, subprocess.Popen(
        [sys.executable, worker, json.dumps(unit)], stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            store.add({**common, **json.loads(line)})
    last = (errors.read_text().strip() or "no word").splitlines()[-1]
    error = f"exit status {process.returncode}: {last}" if process.returncode else None
    if error:
        print(f"  failed: {error}", flush=True)
    if unit["kind"] == "training":
        store.add({"kind": "end", **common, "error": error})


def sets_of(args: argparse.Namespace, program: str) -> Path:
    """Where the data sets of a program are."""
    return args.output / f"sets-{program}.npz"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Amortised posteriors of programs, beside NUTS.")
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--backends", nargs="+", choices=("numpyro", "pyro"),
                        default=["numpyro", "pyro"],
                        help="that train; NUTS is NumPyro's")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--num-simulations", type=int, default=10_000)
    parser.add_argument("--num-sets", type=int, default=20, help="simulated, beside the real one")
    parser.add_argument("--num-draws", type=int, default=10_000, help="for each data set")
    parser.add_argument("--num-reference", type=int, default=4_000, help="draws of each of the "
                        "four chains of NUTS")  # fmt: skip
    parser.add_argument("--num-chains-for", type=int, default=2, help="data sets whose draws are "
                        "also refined by NUTS")  # fmt: skip
    parser.add_argument("--num-checks", type=int, default=300, help="simulations for check()")
    parser.add_argument("--output", type=Path, default=Path("sbi-output"))
    parser.add_argument("--tables-only", action="store_true", help="from the results so far")
    parser.add_argument("--docs", type=Path, help="folder whose tables to replace")
    parser.add_argument("--smoke", action="store_true", help="tiny: does it run at all")
    args = parser.parse_args(argv)
    if args.smoke:
        args.programs = ["eight_schools"]
        args.num_simulations, args.num_sets, args.num_draws = 300, 1, 200
        args.num_reference, args.num_chains_for, args.num_checks = 200, 0, 100
    return args


if __name__ == "__main__":
    main()
