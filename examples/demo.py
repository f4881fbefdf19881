# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
Run ``delta_vae.py`` in both backends and print one table; ``make demo`` runs this.

    python examples/demo.py --output demo-output
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from studies.comparison import comparison_table, describe, load_results

BACKENDS = ("pyro", "numpyro")
ROOT = Path(__file__).resolve().parents[1]
LOG_FILE = "log.txt"


def start_example(backend: str, folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """
    Start an example in a separate process, since the backends never share one, with its log in a
    file.
    """
    script = ROOT / "examples" / backend / "delta_vae.py"
    folder.mkdir(parents=True, exist_ok=True)
    # The example may run before the packages are installed.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    print(f"examples/{backend}/delta_vae.py {' '.join(options)}".rstrip(), flush=True)
    with (folder / LOG_FILE).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(script), "--output", str(folder), *options],
            env={**os.environ, "PYTHONPATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def log_lines(folder: Path) -> list[str]:
    """The output of an example so far; a progress bar gives a line each time it is drawn."""
    text = (folder / LOG_FILE).read_text(errors="replace")
    return [line for line in re.split(r"[\r\n]", text) if line.strip()]


def wait_for(examples: Mapping[str, subprocess.Popen[bytes]], folders: Mapping[str, Path]) -> None:
    """Show the newest line of each log until all have ended; end with the first that fails."""
    running = True
    while running:
        time.sleep(0.5)
        running = any(process.poll() is None for process in examples.values())
        for backend, process in examples.items():
            if process.poll():
                for other in examples.values():
                    other.kill()
                tail = "\n".join(log_lines(folders[backend])[-20:])
                sys.exit(f"\nThe {backend} example failed ({process.returncode}):\n{tail}")
        if sys.stderr.isatty():
            newest = (log_lines(folder)[-1:] for folder in folders.values())
            shown = (line[0].split("[")[0] if line else "starting" for line in newest)
            print("\r" + " ".join(f"{text:<56.56}" for text in shown), end="", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Run delta_vae.py in Pyro and in NumPyro on the same data, side by side.",
        epilog="All other options go to delta_vae.py, e.g. --dataset mnist --data-dir DIR.",
    )
    parser.add_argument("--output", default="demo-output", help="folder of the pictures")
    args, options = parser.parse_known_args()
    output = Path(args.output)
    start = time.perf_counter()
    folders = {backend: output / backend for backend in BACKENDS}
    examples = {name: start_example(name, folder, options) for name, folder in folders.items()}
    wait_for(examples, folders)

    for folder in folders.values():
        print("\n" + next(line for line in log_lines(folder) if "Trace_ELBO" in line), end="")
    results = [load_results(folder) for folder in folders.values()]
    report = f"{describe(results[0])}\n\n{comparison_table(results)}"
    (output / "table.txt").write_text(report + "\n")
    print(f"\n\n{report}\n\nTook {time.perf_counter() - start:.0f} s. Pictures:")
    for picture in sorted(output.glob("*/*.png")):
        print(f"  {picture}")


if __name__ == "__main__":
    main()
