# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What ``examples/*/stored_table.py`` share: options, the pendulum, the check and a picture."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spread_analysis.plots import COLOURS
from spread_analysis.posterior_check import PosteriorCheck
from spread_core.validation import FloatArray
from studies.options import add_run_options

#: Uniform priors: length in metres, and friction per second.
PRIOR = {"length": (0.5, 1.5), "friction": (0.0, 0.6)}
#: When the angle is measured, in seconds, and with what error, in radians.
TIMES = np.linspace(0.5, 10.0, 20)
ERROR = 0.05
NUM_TIMES = len(TIMES)


def pendulum(rng: np.random.Generator, length: FloatArray, friction: FloatArray) -> FloatArray:
    """The angle of pendulums that start at rest, at one radian, by small steps of Euler-Cromer.

    :param rng: The generator.
    :param length: In metres, shape ``(n,)``.
    :param friction: Per second, shape ``(n,)``.
    :return: Measured angles, shape ``(n, NUM_TIMES)``.
    """
    steps, step = 100, TIMES[0] / 100
    angle, speed = np.ones(len(length)), np.zeros(len(length))
    measured = []
    for _ in TIMES:
        for _ in range(steps):
            speed = speed - step * (9.81 / length * np.sin(angle) + friction * speed)
            angle = angle + step * speed
        measured.append(angle)
    return np.stack(measured, -1) + ERROR * rng.standard_normal((len(length), NUM_TIMES))


# write(path, num_simulations, seed): somebody simulates, and writes the table
Write = Callable[[Path, int, int], Any]
# train(path, num_held_out, seed) -> the posterior, trained on the other rows; and those held out
Train = Callable[[Path, int, int], tuple[Any, Any]]
# array(x): in the backend's type
AsArray = Callable[[FloatArray], Any]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``stored_table.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--table", help="netCDF file with groups prior and prior_predictive, "
                        "made by somebody else; left out, it is made first")  # fmt: skip
    parser.add_argument("--num-simulations", type=int, default=5000, help="in a new table")
    parser.add_argument("--num-held-out", type=int, default=300, help="rows to judge by")
    parser.add_argument("--seed", type=int, default=0)
    add_run_options(parser, backend, "stored-table")
    args = parser.parse_args(argv)
    if args.smoke_test:
        args.num_simulations, args.num_held_out = 300, 100
    return args


def run(
    backend: str, args: argparse.Namespace, write: Write, train: Train, array: AsArray
) -> dict[str, Any]:
    """Make the table if there is none, train on it, check on rows that were held out.

    :param backend: Its name.
    :param args: Options from :func:`parse_args`.
    :param write: Simulates, and writes the table.
    :param train: Reads it, and trains.
    :param array: Makes an array of the backend.
    :return: P-values of the tests, and by latent the width of its posterior beside the prior's.
    """
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    path = Path(args.table) if args.table else output / "table.nc"
    if args.table is None:
        write(path, args.num_simulations, args.seed)
    start = time.perf_counter()
    posterior, held_out = train(path, args.num_held_out, args.seed)
    print(f"{backend}: trained on {path.name} in {time.perf_counter() - start:.0f} s\n")
    check = posterior.check(held_out)
    print(check, "\n")
    draws = drawn(posterior, held_out, array)
    results: dict[str, Any] = {"p_values": check.p_values(), "width": {}, "error": {}}
    for site, (low, high) in PRIOR.items():
        prior_sd = (high - low) / 12**0.5
        sd = draws[site].std(1).mean() / prior_sd
        error = np.abs(draws[site].mean(1) - held_out[site][: len(draws[site])]).mean() / prior_sd
        results["width"][site], results["error"][site] = float(sd), float(error)
        print(f"{site:>9}: posterior sd {sd:.3f} of the prior's, mean error {error:.3f} of it")
    (output / "summary.json").write_text(json.dumps(results, indent=1) + "\n")
    figure = _figure(backend, draws, held_out, check)
    figure.savefig(output / "stored_table.png", dpi=150, bbox_inches="tight")
    print(f"\npicture: {output / 'stored_table.png'}")
    return results


def drawn(posterior: Any, held_out: Any, array: AsArray, most: int = 40) -> dict[str, FloatArray]:
    """Draws of the posterior for some of the rows held out.

    :param posterior: It.
    :param held_out: The rows.
    :param array: Makes an array of the backend.
    :param most: How many of them.
    :return: Dict from latent to draws, shape ``(rows, 500)``.
    """
    rows = [posterior.sample(array(x), num_samples=500) for x in held_out["x"][:most]]
    return {site: np.stack([np.asarray(row[site], float) for row in rows]) for site in PRIOR}


def _figure(
    backend: str, draws: dict[str, FloatArray], held_out: Any, check: PosteriorCheck
) -> Any:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    words = "passes" if check.passed else "fails"
    for ax, (site, (low, high)), colour in zip(axes, PRIOR.items(), COLOURS, strict=False):
        truth = held_out[site][: len(draws[site])]
        below, middle, above = np.percentile(draws[site], [5, 50, 95], axis=1)
        ax.plot([low, high], [low, high], color="0.8", linewidth=1)
        ax.errorbar(truth, middle, [middle - below, above - middle], fmt="o", color=colour,
                    markersize=3, linewidth=1)  # fmt: skip
        ax.set(title=site, xlabel="truth, in rows held out", ylabel="median and 90 % interval")
    figure.suptitle(f"a posterior from a table on disk ({backend}); its check {words}")
    return figure
