# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What ``examples/*/sbi_tasks.py`` share: options, simulations, judge and table."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spread_analysis.evaluation import mean_and_error
from spread_analysis.metrics import c2st
from spread_core.validation import FloatArray
from studies.options import add_run_options
from studies.sbi_tasks import SBI_TASKS, SbiTask
from studies.sbi_tasks.observations import available, load_observation

# fit(task, theta and x by site, seed) -> function from x and a number to draws by site
Fit = Callable[[SbiTask, Mapping[str, FloatArray], FloatArray, int], Callable[[Any, int], Any]]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``sbi_tasks.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tasks", nargs="+", choices=tuple(SBI_TASKS), default=["two_moons"])
    parser.add_argument("--num-simulations", type=int, default=10_000)
    parser.add_argument("--num-draws", type=int, default=10_000, help="judged for an observation")
    parser.add_argument("--data-dir", help="folder of the benchmark's observations and reference "
                        "posteriors; left out, both are drawn here")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    add_run_options(parser, backend, "sbi-tasks")
    args = parser.parse_args(argv)
    if args.smoke_test:
        args.num_simulations, args.num_draws = 200, 50
    for name in args.tasks:
        if not available(SBI_TASKS[name], args.data_dir):
            parser.error(f"no posterior of {name} is known: pass --data-dir")
    return args


def run(args: argparse.Namespace, fit: Fit) -> dict[str, Any]:
    """Train on every task, and judge the draws at its observations.

    :param args: Options from :func:`parse_args`.
    :param fit: Trains one posterior.
    :return: By task: C2ST of every observation, the published C2ST of NPE, and seconds of training.
    """
    results = {}
    print(f"{'':<26}{'C2ST':>15}{'NPE, published':>16}{'seconds':>9}")
    for name in args.tasks:
        task = SBI_TASKS[name]
        theta, x = task.run_prior(args.num_simulations, args.seed)
        start = time.perf_counter()
        draw = fit(task, task.split(theta), x, args.seed)
        seconds = time.perf_counter() - start
        scores = []
        for number in available(task, args.data_dir):
            observation = load_observation(task, number, args.data_dir, args.num_draws)
            values = draw(observation.x.astype(np.float32), args.num_draws)
            scores.append(c2st(observation.posterior, task.join(values)))
        # At 10,000 simulations.
        published = task.published["NPE"][1]
        results[name] = {"c2st": scores, "published": published, "seconds": seconds}
        mean = mean_and_error(scores).format()
        print(f"{name:<26}{mean:>15}{published:>16.3f}{seconds:>9.1f}", flush=True)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "summary.json").write_text(json.dumps(results, indent=1) + "\n")
    return results
