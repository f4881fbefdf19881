# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What both backends' benchmarks share: paired timing, statistics, memory, worker processes."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set by run.py --threads for its workers.
THREADS = int(os.environ.get("BENCHMARK_THREADS", "2"))
PARTS = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m")
BACKENDS = ("pyro", "numpyro")

# Takes a number of steps, runs them, and returns when all of them are done.
Contestant = Callable[[int], Any]
Row = dict[str, Any]


def bind_threads() -> None:
    """As many cores as threads; must run before a backend is imported."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"):
        os.environ[variable] = str(THREADS)
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = f"--xla_cpu_multi_thread_eigen={str(THREADS > 1).lower()}"
    if "--smoke" in sys.argv:
        flags += " --xla_backend_optimization_level=0"  # most of a smoke run is compiling
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    if hasattr(os, "sched_setaffinity"):
        # XLA sizes its thread pool by the cores that it may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-THREADS:])


@dataclass(frozen=True)
class Pair:
    """The ratio of the times of two contestants, and the most that it may be."""

    part: str
    label: str
    numerator: str
    denominator: str
    target: float | None = None


# Part j: critic steps for each of the guide's.
CRITIC_STEPS = (1, 2, 4)
COST_IN_K = tuple(Pair("j", f"{k} critic steps", f"k = {k}", "k = 1") for k in CRITIC_STEPS[1:])


def check_similar(losses: Mapping[str, float]) -> None:
    """Contestants with other random streams must report the same loss to a few per cent."""
    smallest, largest = min(losses.values()), max(losses.values())
    if not largest - smallest <= 0.05 * abs(largest):
        raise AssertionError(f"the contestants do not compute the same thing: {losses}")


def interleave(
    contestants: Mapping[str, Contestant], repetitions: int, steps: int, seed: int, warmup: int = 2
) -> dict[str, list[float]]:
    """
    Milliseconds per step of every contestant in every repetition.

    A repetition runs each contestant once, for a few steps, in an order shuffled anew: whatever
    else the machine does for longer than a repetition hits all alike and leaves the ratios alone.
    """
    for run in contestants.values():
        for _ in range(warmup):
            run(steps)
    gc.collect()
    order, rng = list(contestants), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repetitions):
        rng.shuffle(order)
        for name in order:
            start = time.perf_counter()
            contestants[name](steps)
            times[name].append(1e3 * (time.perf_counter() - start) / steps)
    return times


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Median, 10 and 90 % quantiles and number of repetitions."""
    deciles = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values
    return {
        "median": statistics.median(values),
        "p10": deciles[0],
        "p90": deciles[-1],
        "repetitions": len(values),
    }


def ratio_rows(
    backend: str, case: str, times: Mapping[str, Sequence[float]], pairs: Sequence[Pair]
) -> list[Row]:
    """A row for every pair (the ratio taken within each repetition) and every contestant's time."""
    rows = []
    for pair in pairs:
        numerator, denominator = times[pair.numerator], times[pair.denominator]
        ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
        what = f"{pair.label}: {pair.numerator} / {pair.denominator}"
        rows.append(row(pair.part, backend, case, what, "ratio", summarise(ratios), pair.target))
    parts = ",".join(sorted({pair.part for pair in pairs}))
    for name, values in times.items():
        rows.append(row(parts, backend, case, name, "ms", summarise(values)))
    return rows


def row(
    part: str,
    backend: str,
    case: str,
    what: str,
    unit: str,
    value: Mapping[str, Any] | float,
    target: float | None = None,
) -> Row:
    """One measured quantity. All rows have the same keys; a target is the most it may be."""
    if not isinstance(value, Mapping):
        value = {"median": value, "p10": None, "p90": None, "repetitions": 1}
    met = None if target is None else bool(value["median"] <= target)
    labels = {"part": part, "backend": backend, "case": case, "what": what, "unit": unit}
    return {**labels, **value, "target": target, "met": met}


def slope(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Least-squares slope of log cost on log size over the larger half of the sizes."""
    half = min(len(sizes) // 2, len(sizes) - 2)
    x = [math.log(size) for size in sizes[half:]]
    y = [math.log(cost) for cost in costs[half:]]
    return statistics.linear_regression(x, y).slope


def scaling_rows(
    backend: str,
    case: str,
    costs: Mapping[int, Mapping[str, Any] | float],
    unit: str,
    target: float | None,
) -> list[Row]:
    """The cost at every size, then the slope of log cost on log size."""
    sizes = sorted(costs)
    rows = [row("e", backend, case, f"size {size}", unit, costs[size]) for size in sizes]
    fitted = slope(sizes, [measured["median"] for measured in rows])
    return [*rows, row("e", backend, case, f"slope of log {unit}", "slope", fitted, target)]


class PeakMemory:
    """
    Most resident memory, in MiB, above what was resident when this was made.

    Linux lets a process reset its high-water mark, so that what importing a backend took for a
    moment hides nothing; elsewhere only growth beyond the earlier mark is seen.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _resident("VmRSS") or _resident("VmHWM")

    def read(self) -> float:
        return max(0.0, _resident("VmHWM") - self._before) / 1024


def _resident(field: str) -> float:
    """A field of the process's status, in KiB."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return float(line.split()[1])
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform == "darwin" else float(peak)


def worker_arguments() -> argparse.Namespace:
    """Arguments of a worker, which :func:`run_worker` passes."""
    parser = argparse.ArgumentParser(description="Worker of benchmarks/run.py.")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", nargs=2, metavar=("NET", "CONTESTANT"))
    parser.add_argument("--result", type=Path, required=True)
    return parser.parse_args()


def run_worker(
    backend: str,
    parts: Collection[str],
    smoke: bool,
    seed: int,
    result: Path,
    memory: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Run a backend's worker in a process of its own and read the JSON that it wrote."""
    script = Path(__file__).with_name(f"{backend}_bench.py")
    command = [sys.executable, str(script), "--parts", ",".join(sorted(parts))]
    command += ["--seed", str(seed), "--result", str(result)]
    command += ["--smoke"] if smoke else []
    command += ["--memory", *memory] if memory else []
    # Torch's memory profiler prints lines to stderr that are of no use here.
    root = str(script.parents[1])  # measure this checkout, whatever is installed
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=env)
    chatter = ("USDT:", "CPUAllocator.cpp")
    for line in done.stderr.splitlines():
        if not any(word in line for word in chatter):
            print(line, file=sys.stderr)
    done.check_returncode()
    answer: dict[str, Any] = json.loads(result.read_text())
    result.unlink()
    return answer


def write_result(path: Path, rows: Sequence[Row], versions: Mapping[str, str]) -> None:
    """What a worker hands back."""
    path.write_text(json.dumps({"rows": list(rows), "versions": dict(versions)}))


def table(rows: Sequence[Row]) -> str:
    """Rows as text, the target beside each value."""
    header = ["part", "backend", "case", "quantity", "median", "10 % .. 90 %", "n", "target", ""]
    lines = [header]
    for r in rows:
        spread = "" if r["p10"] is None else f"{_number(r['p10'])} .. {_number(r['p90'])}"
        target = "" if r["target"] is None else f"<= {r['target']:g}"
        verdict = {None: "", True: "ok", False: "MISSED"}[r["met"]]
        value = f"{_number(r['median'])} {r['unit']}"
        labels = [r["part"], r["backend"], r["case"], r["what"]]
        lines.append([*labels, value, spread, str(r["repetitions"]), target, verdict])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    layout = "  ".join(f"{{:<{width}}}" for width in widths)
    return "\n".join(layout.format(*line).rstrip() for line in lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")
