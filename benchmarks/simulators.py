# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Part k: posteriors of simulators, trained by examples/*/simulator.py and by sbi."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Row
from studies.sbi_tasks import SBI_TASKS
from studies.simulator_study import (
    DENSITY,
    LIMITS,
    LOSSES,
    Fit,
    draw_allowed,
    limit,
    parse_args,
)
from studies.simulator_tasks import TASKS, Table, Task, load_observations

from spread_analysis.metrics import c2st

LIBRARY = "sbi"
#: Our losses: the guide with a density, and the adversarial one that does best.
OURS = (DENSITY, "js")
# From table, observations on its scale and seed to a trained guide.
Train = Callable[[Table, Any, int], Fit]


_MOONS = SBI_TASKS["two_moons"]
#: A task of the benchmark of Lueckmann et al. 2021 that the example leaves out.
TWO_MOONS = Task(
    _MOONS.name,
    _MOONS.dim,
    (_MOONS.published["NPE"][1], _MOONS.published["NRE"][1]),
    _MOONS.draw_prior,
    _MOONS.simulate,
    _MOONS.draw_posterior,
    _MOONS.in_support,
)
_HALF_WIDTH = {"gaussian_mixture": 10.0, "two_moons": 1.0}  # of the box of the prior


def rows(backend: str, smoke: bool, seed: int) -> list[Row]:
    """Seconds and C2ST of every contestant on every task."""
    tasks = [TASKS["gaussian_mixture"]] if smoke else [TASKS["gaussian_mixture"], TWO_MOONS]
    with_library = backend == "pyro" and importlib.util.find_spec(LIBRARY) is not None
    if backend == "pyro" and not with_library:
        print(f"{LIBRARY} is not installed and left out; pip install 'pyro-spread[bench]'.")
    args = parse_args(backend, "", ["--smoke-test"] if smoke else [])
    args.num_threads = harness.THREADS
    if not smoke:  # the first training of a process imports and compiles what the others share
        small = Table.simulate(tasks[0], 1000, seed)
        _ours(backend, parse_args(backend, "", ["--smoke-test"]))[LOSSES[DENSITY]](
            small, small.x[:1], seed
        )
    measured = []
    for task in tasks:
        contestants = _ours(backend, args)
        if with_library:
            contestants |= _library(task, smoke)
        table = Table.simulate(task, args.num_simulations, seed)
        targets = {LOSSES[n]: limit(task.name, n) for n in OURS if task.name in LIMITS}
        for name, train in contestants.items():
            target = targets.get(name)
            measured += _measure(backend, task, table, name, train, target, args, seed)
    return measured


def _measure(
    backend: str,
    task: Task,
    table: Table,
    name: str,
    train: Train,
    target: float | None,
    args: Any,
    seed: int,
) -> list[Row]:
    observed = load_observations(task, args.num_draws, num=args.num_observations)
    x = table.scale_x([o.x for o in observed])
    fit = train(table, x, seed)
    start = time.perf_counter()
    draws, _ = draw_allowed(task, fit, table, x, args.num_draws)
    seconds = time.perf_counter() - start
    scores = [c2st(o.posterior, d) for o, d in zip(observed, draws, strict=True)]
    score = float(np.mean(scores))
    print(f"  {task.name}, {name}: {fit.seconds:.1f} s, C2ST {score:.3f}", flush=True)
    case = f"{task.name}, {args.num_simulations} simulations"
    drawn = f"{name}: {len(observed)} x {args.num_draws} draws"
    return [
        harness.row("k", backend, case, f"{name}: training", "s", fit.seconds),
        harness.row("k", backend, case, drawn, "s", seconds),
        harness.row("k", backend, case, f"{name}: C2ST", "C2ST", score, target),
    ]


def _ours(backend: str, args: Any) -> dict[str, Train]:
    path = Path(__file__).parents[1] / "examples" / backend / "simulator.py"
    spec = importlib.util.spec_from_file_location("simulator", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules["simulator"] = example  # where flax looks its classes up
    spec.loader.exec_module(example)
    fit = example.trainer(args)

    return {LOSSES[loss]: functools.partial(fit, loss) for loss in OURS}


def _library(task: Task, smoke: bool) -> dict[str, Train]:
    """NPE and NRE_A with the defaults of sbi; the latter draws by rejection, not by MCMC."""
    import torch
    from sbi.inference import NPE, NRE_A
    from sbi.utils import BoxUniform

    def contestant(method: Any, **sampling: Any) -> Train:
        def train(table: Table, x: Any, seed: int) -> Fit:
            torch.manual_seed(seed)
            half = _HALF_WIDTH[task.name] * torch.ones(task.dim)
            prior = BoxUniform(-half, half)
            theta = table.unscale_theta(table.theta, table.x).astype(np.float32)
            start = time.perf_counter()
            with _quietly():
                inference = method(prior, show_progress_bars=False)
                inference.append_simulations(torch.from_numpy(theta), torch.from_numpy(table.x))
                inference.train(**({"max_num_epochs": 2} if smoke else {}))
            posterior = inference.build_posterior(**sampling)
            seconds = time.perf_counter() - start

            def draw(num: int) -> Any:
                given = [
                    posterior.sample((num,), x=torch.from_numpy(row), show_progress_bars=False)
                    for row in x
                ]
                return table.scale_theta(torch.stack(given).numpy(), x[:, None])

            return Fit(draw, seconds)

        return train

    return {
        "sbi NPE": contestant(NPE),
        "sbi NRE_A": contestant(NRE_A, sample_with="rejection"),
    }


@contextlib.contextmanager
def _quietly() -> Any:
    """In a folder of its own, since sbi writes logs to where it stands, and without its prints."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        yield
