# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What ``examples/*/black_box.py`` share: options, the two simulators, judge and table."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

from spread_core.validation import FloatArray
from studies.options import add_run_options

#: Prior: the logarithms of beta and gamma are normal, with these means and standard deviations.
PRIOR = {"beta": (math.log(0.4), 0.5), "gamma": (math.log(0.125), 0.2)}
#: Days on which the ill are counted.
DAYS = np.arange(16.0, 161.0, 16.0)
NUM_DAYS = len(DAYS)
#: Of how many people, and the share of the ill at first.
PEOPLE, ILL = 1000, 0.01

PROGRAM = Path(__file__).with_name("epidemic.py")


def run_ode(rng: np.random.Generator, beta: FloatArray, gamma: FloatArray) -> FloatArray:
    """The SIR equations for all runs at once; a random thousand people are looked at each time.

    :param rng: The generator.
    :param beta: Infections per day and ill person, shape ``(n,)``.
    :param gamma: Recoveries per day, shape ``(n,)``.
    :return: Number of the ill, shape ``(n, NUM_DAYS)``; NaN where the solver fails.
    """

    def flow(_: float, state: FloatArray) -> FloatArray:
        susceptible, ill = np.split(state, 2)
        infected = beta * susceptible * ill
        return np.concatenate([-infected, infected - gamma * ill])

    share = np.full(len(beta), ILL)
    start = np.concatenate([1 - share, share])
    solution = solve_ivp(flow, (0.0, DAYS[-1]), start, t_eval=DAYS, rtol=1e-4)
    if not solution.success:
        return np.full((len(beta), NUM_DAYS), np.nan)
    return rng.binomial(PEOPLE, np.clip(solution.y[len(beta) :], 0, 1)).astype(float)


def run_program(rng: np.random.Generator, beta: float, gamma: float) -> FloatArray:
    """One run of a program of its own, for ``vectorized=False``.

    :param rng: The generator of this run, which gives the program its seed.
    :param beta: Infections per day and ill person.
    :param gamma: Recoveries per day.
    :return: Number of the ill, shape ``(NUM_DAYS,)``; NaN if the program fails.
    """
    command = [
        sys.executable,
        "-I",
        "-S",
        str(PROGRAM),
        *map(str, (beta, gamma, rng.integers(2**31))),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return np.full(NUM_DAYS, np.nan)
    return np.array(done.stdout.split(), float)


#: Simulator by name, and whether it takes all runs at once.
SIMULATORS: dict[str, tuple[Callable[..., FloatArray], bool]] = {
    "ode": (run_ode, True),
    "program": (run_program, False),
}


class Fit(NamedTuple):
    """A trained guide on simulations that it was not trained on.

    :param truth: beta and gamma of the simulations, shape ``(num_tests, 2)``.
    :param draws: The guide's, given their data, shape ``(num_draws, num_tests, 2)``.
    """

    truth: FloatArray
    draws: FloatArray


# fit(simulator, vectorized, steps, batch_size) -> a trained guide
FitGuide = Callable[[Callable[..., FloatArray], bool, int, int], Fit]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``black_box.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--simulators", nargs="+", choices=tuple(SIMULATORS),
                        default=list(SIMULATORS))  # fmt: skip
    parser.add_argument("-n", "--num-steps", type=int, default=1000, help="on the ODE")
    parser.add_argument("--batch-size", type=int, default=256, help="runs per step, on the ODE")
    parser.add_argument("--program-steps", type=int, default=150, help="on the program")
    parser.add_argument("--program-batch-size", type=int, default=16, help="on the program")
    parser.add_argument("-lr", "--learning-rate", type=float, default=3e-3)
    parser.add_argument("--hidden-dim", type=int, default=64)
    parser.add_argument("--num-tests", type=int, default=200, help="simulations to judge by")
    parser.add_argument("--num-draws", type=int, default=1000, help="of the guide for each")
    parser.add_argument("--seed", type=int, default=0)
    add_run_options(parser, backend, "black-box")
    args = parser.parse_args(argv)
    if args.smoke_test:
        args.num_steps, args.program_steps, args.program_batch_size = 20, 2, 4
        args.num_tests, args.num_draws = 10, 100
    return args


def judge(fit: Fit) -> dict[str, dict[str, float]]:
    """What share of the truth central intervals of the guide cover, and how wide they are.

    :param fit: The trained guide.

    >>> rng = np.random.default_rng(0)
    >>> draws = np.exp(rng.normal(size=(999, 500, 2)) * [0.5, 0.2])
    >>> found = judge(Fit(np.exp(rng.normal(size=(500, 2)) * [0.5, 0.2]), draws))["beta"]
    >>> {name: round(value, 2) for name, value in found.items()}
    {'covered by 50 %': 0.54, 'covered by 90 %': 0.9, 'width': 1.0}
    """
    results = {}
    for index, (site, (_, scale)) in enumerate(PRIOR.items()):
        truth, draws = fit.truth[:, index], fit.draws[..., index]
        result = {}
        for level in (50, 90):
            low, high = np.percentile(draws, [50 - level / 2, 50 + level / 2], axis=0)
            result[f"covered by {level} %"] = float(((low < truth) & (truth < high)).mean())
        result["width"] = float(np.log(draws).std(0).mean() / scale)
        results[site] = result
    return results


def compare(backend: str, args: argparse.Namespace, fit: FitGuide) -> dict[str, Any]:
    """Train a guide on each simulator, print the table and write the summary.

    :param backend: Its name.
    :param args: The options.
    :param fit: Trains one guide.
    :return: What was measured, by simulator and site.
    """
    results: dict[str, Any] = {}
    print(f"{backend}: share covered, and the sd of the logarithm beside the prior's")
    print(f"{'':>17}{'50 %':>8}{'90 %':>8}{'width':>8}")
    for name in args.simulators:
        steps, batch_size = args.num_steps, args.batch_size
        if name == "program":
            steps, batch_size = args.program_steps, args.program_batch_size
        start = time.perf_counter()
        results[name] = judge(fit(*SIMULATORS[name], steps, batch_size))
        seconds = time.perf_counter() - start
        for site, values in results[name].items():
            print(f"{name:>10} {site:>6}" + "".join(f"{v:>8.2f}" for v in values.values()))
        print(f"{name:>10}: {steps * batch_size} runs, {seconds:.0f} s")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "summary.json").write_text(json.dumps(results, indent=1) + "\n")
    return results
