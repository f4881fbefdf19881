# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Part m: compiled losses beside the loop that a PyTorch user writes, and beside themselves."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from typing import Any

import harness
import pyro
import pyro_contestants as programs
import pyro_contrast
import pyro_gan
import pyro_parents
from harness import Contestant, Pair, Row

# The most that a ratio may be depends on the net.
_TARGETS = {"tiny": (0.60, 0.8), "mlp": (0.90, 1.0), "conv": (0.95, None)}
_GAN = (
    Pair("m", "loss(model, guide)", "ours-module-compiled", "hand", 0.80),
    Pair("m", "loss(model, guide)", "ours-module-compiled", "pixyz", 0.64),
    Pair("m", "as it is, for comparison", "ours-module", "hand"),
)
_AVB = (
    Pair("m", "loss(model, guide)", "ours-module-compiled", "hand", 0.90),
    Pair("m", "as it is, for comparison", "ours-module", "hand"),
)
_PARENTS = (Pair("m", "stock Trace_ELBO, SVI.step", "stock-svi-compiled", "stock-svi", 0.6),)


def rows(smoke: bool, seed: int, peak: Callable[[Contestant], float]) -> list[Row]:
    """
    Ratios of the times of steps and of memory, and the seconds until a step is compiled.

    :param smoke: whether sizes are tiny.
    :param seed: of nets, data and order.
    :param peak: memory of a step, in MiB.
    """
    setups = {"tiny": programs.mlp(64, 16, 32, 4)}
    if not smoke:
        setups |= {"mlp": programs.mlp(128), "conv": programs.conv(128)}
    found = []
    pyro.enable_validation(False)
    for net, setup in setups.items():
        module, svi = _TARGETS[net]
        pairs = (
            Pair("m", "loss(model, guide)", "spread-module-compiled", "hand", module),
            Pair("m", "SVI.step", "spread-svi-compiled", "hand", svi),
            Pair("m", "as it is, for comparison", "spread-module", "hand"),
            Pair("m", "loss(model, guide)", "spread-module-compiled", "hand-compiled", 1.05),
            Pair("m", "stock Trace_ELBO", "stock-module-compiled", "stock-module", 0.6),
        )
        names = sorted({name for pair in pairs for name in (pair.numerator, pair.denominator)})
        pyro.clear_param_store()
        contestants = {name: programs.make(name, setup, seed) for name in names}
        found += _measured(net, contestants, pairs, smoke, seed, 1 if net == "conv" else 5, True)
        own = peak(contestants["spread-module-compiled"]) / peak(contestants["spread-module"])
        what = "tensors alive in a step, compiled / as it is"
        found.append(harness.row("m", "pyro", net, what, "ratio", own, 1.1))
    gan, avb = pyro_gan.setup_of(smoke), pyro_contrast.setup_of(smoke)
    for net, contestants, pairs in (
        ("gan", _games(pyro_gan, gan, seed), _GAN),
        ("avb", _games(pyro_contrast, avb, seed), _AVB),
    ):
        pairs = tuple(p for p in pairs if {p.numerator, p.denominator} <= set(contestants))
        found += _measured(net, contestants, pairs, smoke, seed, 5, False)
    for net in pyro_parents.PROGRAMS:
        pyro.clear_param_store()
        contestants = pyro_parents.contestants(net, smoke, seed)
        found += _measured(net, contestants, _PARENTS, smoke, seed, 5, False)
    pyro.enable_validation(True)
    return found


def _games(game: Any, setup: Any, seed: int) -> dict[str, Contestant]:
    """Two players, by the names of their contestants."""
    found = {
        "hand": game.hand(setup, seed),
        "ours-module": game.ours_module(setup, seed),
        "ours-module-compiled": game.ours_module(setup, seed, is_compiled=True),
    }
    if hasattr(game, "pixyz") and importlib.util.find_spec("pixyz") is not None:
        found["pixyz"] = game.pixyz(setup, seed)
    return found


def _measured(
    net: str,
    contestants: Mapping[str, Contestant],
    pairs: tuple[Pair, ...],
    smoke: bool,
    seed: int,
    steps: int,
    same_loss: bool,
) -> list[Row]:
    seconds = {name: _until_compiled(run) for name, run in contestants.items()}
    if same_loss:
        means = {n: sum(run(1) for _ in range(20)) / 20 for n, run in contestants.items()}
        harness.check_similar(means)
    repetitions = 3 if smoke else 40 if net == "conv" else 100
    times = harness.interleave(contestants, repetitions, 1 if smoke else steps, seed)
    found = harness.ratio_rows("pyro", f"{net}, validation off", times, pairs)
    for name in contestants:
        if name.endswith("compiled"):
            what = f"{name}: first three steps, which compile"
            found.append(harness.row("m", "pyro", net, what, "s", seconds[name]))
    return found


def _until_compiled(run: Contestant) -> float:
    start = time.perf_counter()
    run(3)
    return time.perf_counter() - start
