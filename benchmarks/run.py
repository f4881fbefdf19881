# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Measure what the losses cost beside the stock loss and beside hand-written loops.

    python benchmarks/run.py --output bench-output              # everything, about 25 minutes
    python benchmarks/run.py --only a,c --backend pyro
    python benchmarks/run.py --smoke                            # tiny; its times mean nothing

Writes ``benchmarks.json`` and ``benchmarks.txt`` to the output folder; benchmarks/README.md says
what the parts are and how they are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness

# Which backend has which timed part; "d" is measured apart, a process for each contestant.
TIMED = {
    "pyro": {"a", "c", "e", "f", "h", "i", "j", "k", "l", "m"},
    "numpyro": {"a", "b", "e", "g", "h", "i", "j", "k", "l"},
}
CONTESTANTS = {
    "pyro": ("hand", "stock-module", "spread-module", "stock-svi", "spread-svi"),
    "numpyro": ("hand", "stock", "spread"),
}


def main() -> None:
    args = _arguments()
    os.environ["BENCHMARK_THREADS"] = str(args.threads)
    started, load = time.time(), _load()
    rows: list[harness.Row] = []
    versions: dict[str, str] = {"python": platform.python_version()}
    with tempfile.TemporaryDirectory() as folder:
        for backend in args.backend:
            for answer in _measure(backend, args, Path(folder)):
                rows += answer["rows"]
                versions |= answer["versions"]
    rows.sort(key=lambda row: (row["part"][0], harness.BACKENDS.index(row["backend"])))
    report = {
        "smoke": args.smoke,
        "seed": args.seed,
        "threads": args.threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load_average": {"before": load, "after": _load()},
        "seconds": round(time.time() - started, 1),
        "versions": versions,
        "rows": rows,
    }
    text = harness.table(rows)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "benchmarks.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.output / "benchmarks.txt").write_text(text + "\n")
    print(text)
    print(f"\nload average before {load}, {report['seconds']} s in all.")
    if args.smoke:
        print("A smoke run: its times mean nothing.")
        return
    missed = [row for row in rows if row["met"] is False]
    print(f"{len(missed)} of {sum(row['met'] is not None for row in rows)} targets missed.")


def _measure(backend: str, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """What the workers of a backend hand back."""
    answers = []
    timed = TIMED[backend] & args.only
    if timed:
        print(f"{backend}: timing parts {', '.join(sorted(timed))} ...", flush=True)
        answers.append(
            harness.run_worker(backend, timed, args.smoke, args.seed, folder / "timed.json")
        )
    if "d" in args.only:
        print(f"{backend}: measuring memory ...", flush=True)
        names = CONTESTANTS[backend]
        jobs = [(net, name) for net in ("mlp", "conv") for name in names]
        if args.smoke:
            jobs = [("mlp", names[0]), ("mlp", names[2])]

        def one(job: tuple[str, str]) -> dict[str, Any]:
            result = folder / f"{'-'.join(job)}.json"
            return harness.run_worker(backend, {"d"}, args.smoke, args.seed, result, job)

        # Memory does not mind company.
        with ThreadPoolExecutor(2) as pool:
            measured = list(pool.map(one, jobs))
        _beside_hand(measured)
        answers += measured
    return answers


def _beside_hand(answers: list[dict[str, Any]]) -> None:
    """Add to every memory row's answer the ratio to the hand-written program."""
    values = {}
    for answer in answers:
        for row in answer["rows"]:
            name, what = row["what"].split(": ")
            values[row["case"], name, what] = row["median"]
    for answer in answers:
        for row in list(answer["rows"]):
            name, what = row["what"].split(": ")
            hand = values[row["case"], "hand", what]
            if name == "hand" or hand == 0.0:
                continue
            label = f"{what}: {name} / hand"
            ratio = row["median"] / hand
            answer["rows"].append(
                harness.row("d", row["backend"], row["case"], label, "ratio", ratio)
            )


def _load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _arguments() -> argparse.Namespace:
    def listed(allowed: tuple[str, ...]) -> Any:
        def parse(text: str) -> set[str]:
            chosen = set(text.split(","))
            if not chosen <= set(allowed):
                raise argparse.ArgumentTypeError(f"choose from {', '.join(allowed)}")
            return chosen

        return parse

    summary = "Measure what the losses cost; parts are described in benchmarks/README.md."
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    parser.add_argument("--only", type=listed(harness.PARTS), default=set(harness.PARTS))
    parser.add_argument("--backend", type=listed(harness.BACKENDS), default=set(harness.BACKENDS))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one run of everything")
    parser.add_argument("--threads", type=int, help="2 by default, 1 in a smoke run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.threads = args.threads or (1 if args.smoke else 2)
    args.backend = [backend for backend in harness.BACKENDS if backend in args.backend]
    return args


if __name__ == "__main__":
    main()
