# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Worker of run.py for JAX and NumPyro: measures, and writes rows."""

from __future__ import annotations

from typing import Any

import harness

harness.bind_threads()

import black_boxes  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpyro  # noqa: E402
import numpyro_contestants as programs  # noqa: E402
import numpyro_contrast  # noqa: E402
import numpyro_gan  # noqa: E402
import optax  # noqa: E402
import simulators  # noqa: E402
from harness import Contestant, Pair, Row  # noqa: E402
from jax import Array, random  # noqa: E402

from numpyro_spread import LowRankGaussianNoise, Simulator  # noqa: E402

PAIRS = (
    Pair("a", "svi.update under scan", "spread", "stock", 1.05),
    Pair("b", "svi.update under scan", "spread", "hand", 1.05),
    Pair("b", "stock NumPyro, for comparison", "stock", "hand"),
)
RANK = 10


def setups(smoke: bool) -> dict[str, programs.Setup]:
    if smoke:
        return {"mlp": programs.mlp(8, 16, 8, 2), "conv": programs.conv(4, 16, 2, 2)}
    return {"mlp": programs.mlp(128), "conv": programs.conv(128)}


def step_ratios(parts: set[str], smoke: bool, seed: int) -> list[Row]:
    """Parts a and b."""
    pairs = [pair for pair in PAIRS if pair.part in parts]
    names = sorted({name for pair in pairs for name in (pair.numerator, pair.denominator)})
    rows = []
    for net, setup in setups(smoke).items():
        repetitions, steps = {"mlp": (60, 10), "conv": (30, 2)}[net] if not smoke else (3, 2)
        contestants = {name: programs.make(name, setup, seed, steps) for name in names}
        if not smoke:
            # Random streams and initial nets differ.
            harness.check_similar({name: run(0) for name, run in contestants.items()})
        times = harness.interleave(contestants, repetitions, steps, seed)
        rows += harness.ratio_rows("numpyro", net, times, pairs)
    return rows


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
    if smoke:  # compiling takes seconds
        del cases["data dimension, mlp"]
    steps = 1 if smoke else 2
    rows = []
    for case, sized in cases.items():
        for name, target in (("spread", 1.1), ("hand", None)):
            if smoke and name == "hand":
                continue
            contestants = {
                str(size): programs.make(name, setup, seed, steps) for size, setup in sized.items()
            }
            times = harness.interleave(contestants, 3 if smoke else 9, steps, seed)
            costs = {size: harness.summarise(times[str(size)]) for size in sized}
            rows += harness.scaling_rows("numpyro", f"{case}, {name}", costs, "ms", target)
    return rows + low_rank(smoke, seed)


def low_rank_program(dim: int, batch: int, seed: int) -> tuple[Any, Contestant]:
    """A draw, its log-density, and the gradients in location and factor; compiled."""
    x_key, factor_key, rng_key = random.split(random.key(seed), 3)
    x, factor = random.normal(x_key, (batch, dim)), random.normal(factor_key, (dim, RANK))

    def log_density(x: Array, factor: Array, rng_key: Array) -> Array:
        y = LowRankGaussianNoise(0.3, factor)(x, event_dim=1)
        return y.log_prob(jax.lax.stop_gradient(y.sample(rng_key))).sum()

    program = jax.jit(jax.value_and_grad(log_density, argnums=(0, 1)))
    compiled = program.lower(x, factor, rng_key).compile()

    def run(steps: int) -> None:
        for _ in range(steps):
            jax.block_until_ready(compiled(x, factor, rng_key))

    return compiled, run


def low_rank(smoke: bool, seed: int) -> list[Row]:
    dims = [10, 20] if smoke else [300, 1000, 3000, 10_000, 30_000, 100_000]
    made = {dim: low_rank_program(dim, 2 if smoke else 16, seed) for dim in dims}
    contestants = {str(dim): run for dim, (_, run) in made.items()}
    times = harness.interleave(contestants, 3 if smoke else 15, 1 if smoke else 2, seed)
    case = f"LowRankGaussianNoise, R = {RANK}, D"
    time_costs = {dim: harness.summarise(times[str(dim)]) for dim in dims}
    sizes = {dim: programs.compiled_memory(compiled) for dim, (compiled, _) in made.items()}
    rows = harness.scaling_rows("numpyro", case, time_costs, "ms", 1.1)
    return rows + harness.scaling_rows("numpyro", case, sizes, "MiB", 1.1)


def memory(net: str, name: str, smoke: bool, seed: int) -> list[Row]:
    """Part d, for one contestant in a process of its own."""
    run = programs.Scanned(name, setups(smoke)[net], seed, steps=1)
    resident = harness.PeakMemory()
    for _ in range(3):
        run(1)
    resident_peak = resident.read()
    planned = run.compiled_memory()
    return [
        harness.row("d", "numpyro", net, f"{name}: compiled step", "MiB", planned),
        harness.row("d", "numpyro", net, f"{name}: growth of the process", "MiB", resident_peak),
    ]


def black_box_draws() -> dict[str, Any]:
    """Part l: a simulator that is made and drawn from, as at a site."""
    key, theta = random.key(0), jnp.zeros(black_boxes.BATCH)

    def draw(fn: Any, vectorized: bool, compiled: bool) -> Any:
        def once(key: Array, theta: Array) -> Array:
            return Simulator(fn, theta, event_shape=(1,), vectorized=vectorized).sample(key)

        function = jax.jit(once) if compiled else once
        return lambda: function(key, theta).block_until_ready()

    return {
        "Simulator": draw(black_boxes.empty, True, False),
        "Simulator under jit": draw(black_boxes.empty, True, True),
        "Simulator under jit, row by row": draw(black_boxes.empty_row, False, True),
    }


def main() -> None:
    args = harness.worker_arguments()
    parts = set(args.parts.split(","))
    rows: list[Row] = []
    if args.memory:
        net, name = args.memory
        rows += memory(net, name, args.smoke, args.seed)
    else:
        if parts & {"a", "b"}:
            rows += step_ratios(parts, args.smoke, args.seed)
        if "e" in parts:
            rows += scaling(args.smoke, args.seed)
        if "g" in parts:
            rows += numpyro_gan.step_ratios(args.smoke, args.seed)
        if "h" in parts:
            rows += numpyro_gan.mmd(args.smoke, args.seed, programs.compiled_memory)
        if parts & {"i", "j"}:
            rows += numpyro_contrast.rows(parts, args.smoke, args.seed)
        if "k" in parts:
            rows += simulators.rows("numpyro", args.smoke, args.seed)
        if "l" in parts:
            rows += black_boxes.rows("numpyro", black_box_draws(), args.smoke, args.seed)
    versions = {
        "jax": jax.__version__,
        "numpyro": numpyro.__version__,
        "optax": optax.__version__,
    }
    harness.write_result(args.result, rows, versions)


if __name__ == "__main__":
    main()
