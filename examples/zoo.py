# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Every system of the literature on the same digits, in both backends; ``make zoo`` runs this.

    python examples/zoo.py --output zoo-output
    python examples/zoo.py --backend numpyro --systems vae real_nvp --num-seeds 3
    python examples/zoo.py --output zoo-output --report --docs docs
    python examples/zoo.py --output zoo-mnist --dataset mnist --data-dir DIR --resume

The backends run side by side, a process each, with their logs in ``log.txt``. A row that fails says
so in the table, the others run on, and the program ends with an error. ``--report`` trains nothing
and writes table and pictures from the numbers that are there; ``--docs`` writes those of the
documentation too: of rows that were not run the page keeps what it has. ``--resume`` goes on where
a run was killed, after the last row that it had finished.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from studies.zoo import SYSTEMS, load_zoo_data, run_backend, write_report
from studies.zoo.program import add_zoo_options, check_zoo_options

BACKENDS = ("pyro", "numpyro")
ROOT = Path(__file__).resolve().parents[1]
LOG_FILE = "log.txt"
FLAGS = ("resume", "smoke_test")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=(*BACKENDS, "both"), default="both")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--output", default="zoo-output", help="folder of table and pictures")
    parser.add_argument("--report", action="store_true", help="train nothing, report what is there")
    parser.add_argument("--docs", metavar="FOLDER", help="write the documentation's results there")
    parser.add_argument("--smoke-test", action="store_true", help="tiny: does it run at all")
    add_zoo_options(parser)
    args = parser.parse_args()
    check_zoo_options(parser, args)
    return args


def start_backend(backend: str, args: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    """Run this program again with one backend: the two never share a process."""
    options = ["--backend", backend, "--output", str(folder), "--systems", *args.systems]
    for name in ("dataset", "data_dir", "seed", "num_seeds", "num_steps"):
        if getattr(args, name) is not None:
            options += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    options += [f"--{name.replace('_', '-')}" for name in FLAGS if getattr(args, name)]
    folder.mkdir(parents=True, exist_ok=True)
    # The program may run before the packages are installed. A core each: nets as small as these
    # gain nothing from a second one.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if args.smoke_test:
        # A few steps of every row: compiling takes longer than what it would make faster.
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    with (folder / LOG_FILE).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *options],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def wait_for(running: Mapping[str, subprocess.Popen[bytes]], folders: Mapping[str, Path]) -> None:
    """Say which rows are done, as the logs do."""
    shown = dict.fromkeys(running, 0)
    waiting = True
    while waiting:
        time.sleep(0.5)
        waiting = any(process.poll() is None for process in running.values())
        for backend, folder in folders.items():
            text = (folder / LOG_FILE).read_text(errors="replace")
            done = [line for line in text.splitlines() if line.startswith(f"{backend}: ")]
            for line in done[shown[backend] :]:
                print(line, flush=True)
            shown[backend] = len(done)


def main() -> None:
    args = parse_args()
    output = Path(args.output)
    if args.backend != "both" and not args.report:
        run_backend(args.backend, ROOT / "examples" / args.backend / "zoo", args)
        return
    backends = BACKENDS if args.backend == "both" else (args.backend,)
    folders = {backend: output / backend for backend in backends}
    began = time.perf_counter()
    failed = []
    if not args.report:
        load_zoo_data(args.smoke_test, args.dataset, args.data_dir)  # a wrong folder ends it here
        running = {name: start_backend(name, args, folder) for name, folder in folders.items()}
        wait_for(running, folders)
        failed = [
            str(folders[name] / LOG_FILE) for name, done in running.items() if done.returncode
        ]
    print("\n" + write_report(output, folders, args.systems, docs=args.docs))
    print(f"\nTook {time.perf_counter() - began:.0f} s. Table and pictures are in {output}.")
    if failed:
        sys.exit(f"Rows have failed; see {' and '.join(failed)}.")


if __name__ == "__main__":
    main()
