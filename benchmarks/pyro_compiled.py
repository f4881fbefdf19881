# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Part m: compiled losses beside the loop that a PyTorch user writes, and beside themselves."""

from __future__ import annotations

import time

import harness
import pyro
import pyro_contestants as programs
from harness import Pair, Row

# The most that a ratio may be depends on the net.
_TARGETS = {"tiny": (0.60, 0.8), "mlp": (0.90, 1.0), "conv": (0.95, None)}


def rows(smoke: bool, seed: int) -> list[Row]:
    """
    Ratios of the times of steps, and the seconds until a step is compiled.

    :param smoke: whether sizes are tiny.
    :param seed: of nets, data and order.
    """
    setups = {"tiny": programs.mlp(64, 16, 32, 4)}
    if not smoke:
        setups |= {"mlp": programs.mlp(128), "conv": programs.conv(128)}
    found = []
    for net, setup in setups.items():
        module, svi = _TARGETS[net]
        pairs = (
            Pair("m", "loss(model, guide)", "spread-module-compiled", "hand", module),
            Pair("m", "SVI.step", "spread-svi-compiled", "hand", svi),
            Pair("m", "as it is, for comparison", "spread-module", "hand"),
            Pair("m", "stock Trace_ELBO", "stock-module-compiled", "stock-module", 0.6),
        )
        pyro.clear_param_store()
        pyro.enable_validation(False)
        names = sorted({name for pair in pairs for name in (pair.numerator, pair.denominator)})
        contestants = {name: programs.make(name, setup, seed) for name in names}
        seconds = {name: _until_compiled(run) for name, run in contestants.items()}
        means = {n: sum(run(1) for _ in range(20)) / 20 for n, run in contestants.items()}
        harness.check_similar(means)
        repetitions, steps = (3, 1) if smoke else (40, 1) if net == "conv" else (100, 5)
        times = harness.interleave(contestants, repetitions, steps, seed)
        found += harness.ratio_rows("pyro", f"{net}, validation off", times, pairs)
        for name in filter(_is_compiled, names):
            what = f"{name}: first three steps, which compile"
            found.append(harness.row("m", "pyro", net, what, "s", seconds[name]))
    pyro.enable_validation(True)
    return found


def _is_compiled(name: str) -> bool:
    return name.endswith("compiled")


def _until_compiled(run: harness.Contestant) -> float:
    start = time.perf_counter()
    run(3)
    return time.perf_counter() - start
