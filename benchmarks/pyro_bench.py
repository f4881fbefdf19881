# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Worker of run.py for PyTorch and Pyro: measures, and writes rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import harness

harness.bind_threads()

import black_boxes  # noqa: E402
import pyro  # noqa: E402
import pyro_compiled  # noqa: E402
import pyro_contestants as programs  # noqa: E402
import pyro_contrast  # noqa: E402
import pyro_gan  # noqa: E402
import simulators  # noqa: E402
import torch  # noqa: E402
from harness import Contestant, Pair, Row  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from pyro_spread import LowRankGaussianNoise, Simulator  # noqa: E402

PAIRS = (
    Pair("a", "SVI.step", "spread-svi", "stock-svi", 1.05),
    Pair("a", "loss(model, guide)", "spread-module", "stock-module", 1.05),
    Pair("c", "loss(model, guide)", "spread-module", "hand", 1.15),
    Pair("c", "stock Pyro, for comparison", "stock-module", "hand"),
    Pair("c", "SVI.step, for comparison", "spread-svi", "hand"),
)
RANK = 10


def setups(smoke: bool) -> dict[str, programs.Setup]:
    if smoke:
        return {"mlp": programs.mlp(8, 16, 8, 2), "conv": programs.conv(4, 16, 2, 2)}
    return {"mlp": programs.mlp(128), "conv": programs.conv(128)}


def step_ratios(parts: set[str], smoke: bool, seed: int) -> list[Row]:
    """Parts a and c, with and without Pyro's validation of arguments and samples."""
    pairs = [pair for pair in PAIRS if pair.part in parts]
    names = sorted({name for pair in pairs for name in (pair.numerator, pair.denominator)})
    rows = []
    for net, setup in setups(smoke).items():
        repetitions, steps = {"mlp": (100, 5), "conv": (40, 1)}[net] if not smoke else (3, 1)
        for validate in (True, False):
            pyro.clear_param_store()
            pyro.enable_validation(validate)
            contestants = {name: programs.make(name, setup, seed) for name in names}
            check_same_mathematics(contestants, seed)
            times = harness.interleave(contestants, repetitions, steps, seed)
            case = f"{net}, validation {'on (default)' if validate else 'off'}"
            rows += harness.ratio_rows("pyro", case, times, pairs)
    pyro.enable_validation(True)
    return rows


def check_same_mathematics(contestants: Mapping[str, Contestant], seed: int) -> None:
    """All draw noise and z in the same order: from the same seed they must report the same loss."""
    losses = {}
    for name, run in contestants.items():
        pyro.set_rng_seed(seed)
        losses[name] = run(2)
    smallest, largest = min(losses.values()), max(losses.values())
    if largest - smallest > 1e-4 * abs(largest):
        raise AssertionError(f"the contestants do not compute the same thing: {losses}")


def scaling(smoke: bool, seed: int) -> list[Row]:
    """Part e: the cost of a step against batch size and data dimension, and of low-rank noise."""
    batches = [4, 8] if smoke else [32, 64, 128, 256, 512, 1024, 2048]
    dims = [8, 16] if smoke else [196, 392, 784, 1568, 3136, 6272, 12544]
    cases = {
        "batch size, mlp": {n: programs.mlp(n, *((16, 8, 2) if smoke else ())) for n in batches},
        "data dimension, mlp": {
            d: programs.mlp(8, d, 8, 2) if smoke else programs.mlp(128, d) for d in dims
        },
    }
    rows = []
    for case, sized in cases.items():
        for name, target in (("spread-module", 1.1), ("hand", None)):
            contestants = {str(s): programs.make(name, setup, seed) for s, setup in sized.items()}
            times = harness.interleave(contestants, 3 if smoke else 9, 1 if smoke else 2, seed)
            costs = {size: harness.summarise(times[str(size)]) for size in sized}
            rows += harness.scaling_rows("pyro", f"{case}, {name}", costs, "ms", target)
    return rows + low_rank(smoke, seed)


def low_rank_contestant(dim: int, batch: int, seed: int) -> Contestant:
    """A draw, its log-density, and the gradients in location and factor."""
    torch.manual_seed(seed)
    x = torch.randn(batch, dim, requires_grad=True)
    factor = torch.randn(dim, RANK).requires_grad_()
    noise = LowRankGaussianNoise(0.3, factor)

    def run(steps: int) -> None:
        for _ in range(steps):
            y = noise(x, event_dim=1)
            value = y.log_prob(y.rsample().detach()).sum()
            torch.autograd.grad(value, (x, factor))

    return run


def low_rank(smoke: bool, seed: int) -> list[Row]:
    dims = [10, 20] if smoke else [300, 1000, 3000, 10_000, 30_000, 100_000]
    batch = 2 if smoke else 16
    contestants = {str(dim): low_rank_contestant(dim, batch, seed) for dim in dims}
    times = harness.interleave(contestants, 3 if smoke else 15, 1 if smoke else 2, seed)
    case = f"LowRankGaussianNoise, R = {RANK}, D"
    time_costs = {dim: harness.summarise(times[str(dim)]) for dim in dims}
    sizes = {dim: tensor_peak(contestants[str(dim)]) for dim in dims}
    rows = harness.scaling_rows("pyro", case, time_costs, "ms", 1.1)
    return rows + harness.scaling_rows("pyro", case, sizes, "MiB", 1.1)


def tensor_peak(run: Contestant) -> float:
    """Most memory, in MiB, in tensors that a step allocates and that live at the same time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(1)
    # The public events leave out allocations made inside of operators.
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    live = peak = 0
    for _, nbytes in sorted(changes, key=lambda change: change[0]):
        live += nbytes
        peak = max(peak, live)
    return peak / 2**20


def memory(net: str, name: str, smoke: bool, seed: int) -> list[Row]:
    """Part d, for one contestant in a process of its own."""
    # The first step of a process imports modules (torch's compiler, for Adam): not counted.
    small = programs.mlp(2, 4, 4, 2)
    programs.make(name, small, seed)(1)
    run = programs.make(name, setups(smoke)[net], seed)
    resident = harness.PeakMemory()
    run(3)
    resident_peak = resident.read()
    return [
        harness.row("d", "pyro", net, f"{name}: tensors alive in a step", "MiB", tensor_peak(run)),
        harness.row("d", "pyro", net, f"{name}: growth of the process", "MiB", resident_peak),
    ]


def black_box_draws() -> dict[str, Any]:
    """Part l: a simulator that is made and drawn from, as at a site."""
    theta = torch.zeros(black_boxes.BATCH)

    def draw(fn: Any, vectorized: bool) -> Any:
        return lambda: Simulator(fn, theta, event_shape=(1,), vectorized=vectorized).sample()

    return {
        "Simulator": draw(black_boxes.empty, True),
        "Simulator row by row": draw(black_boxes.empty_row, False),
    }


def main() -> None:
    args = harness.worker_arguments()
    torch.set_num_threads(harness.THREADS)
    # Numbers too small for the processor's fast path would make times depend on the data.
    torch.set_flush_denormal(True)
    pyro.set_rng_seed(args.seed)
    parts = set(args.parts.split(","))
    rows: list[Row] = []
    if args.memory:
        net, name = args.memory
        rows += memory(net, name, args.smoke, args.seed)
    else:
        if parts & {"a", "c"}:
            rows += step_ratios(parts, args.smoke, args.seed)
        if "e" in parts:
            rows += scaling(args.smoke, args.seed)
        if "f" in parts:
            rows += pyro_gan.step_ratios(args.smoke, args.seed)
        if "h" in parts:
            rows += pyro_gan.mmd(args.smoke, args.seed, tensor_peak)
        if parts & {"i", "j"}:
            rows += pyro_contrast.rows(parts, args.smoke, args.seed)
        if "k" in parts:
            rows += simulators.rows("pyro", args.smoke, args.seed)
        if "l" in parts:
            rows += black_boxes.rows("pyro", black_box_draws(), args.smoke, args.seed)
        if "m" in parts:
            rows += pyro_compiled.rows(args.smoke, args.seed, tensor_peak)
    versions = {"torch": torch.__version__, "pyro-ppl": pyro.__version__}
    harness.write_result(args.result, rows, versions)


if __name__ == "__main__":
    main()
