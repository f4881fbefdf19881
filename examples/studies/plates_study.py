# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What ``examples/*/amortized_plates.py`` share: options, groups, the exact answer and a table."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spread_analysis.evaluation import format_table
from spread_analysis.plots import COLOURS, INK
from spread_core.validation import FloatArray
from studies.options import add_run_options

#: Standard deviations: of the mean, of groups round it, of a measurement round its group.
MEAN_SCALE, BETWEEN, WITHIN = 2.0, 1.0, 0.7
#: Most groups, and most measurements of one group.
MOST_GROUPS, MOST_MEASUREMENTS = 12, 6
#: Data sets to judge by: how many measurements each of their groups has.
DATA_SETS: dict[str, tuple[int, ...]] = {
    "3 groups": (1, 6, 3),
    "7 groups": (2, 5, 1, 6, 4, 1, 3),
    "12 groups": (6, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5),
}
#: A posterior for the data of one data set: dict from "mu" and "theta" to draws.
Draw = Callable[[Mapping[str, Any], int], Mapping[str, Any]]
# fit(num_simulations, seed) -> the trained posterior
Fit = Callable[[int, int], Draw]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``amortized_plates.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--num-simulations", type=int, default=10_000)
    parser.add_argument("--num-draws", type=int, default=4000, help="of each posterior")
    parser.add_argument("--seed", type=int, default=0)
    add_run_options(parser, backend, "amortized-plates")
    args = parser.parse_args(argv)
    if args.smoke_test:
        args.num_simulations, args.num_draws = 200, 100
    return args


def data_set(sizes: Sequence[int], seed: int) -> dict[str, Any]:
    """Measurements of groups of these sizes, in the shapes of the program.

    :param sizes: How many measurements each group has.
    :param seed: Of NumPy's generator.
    :return: y of shape ``(MOST_GROUPS, MOST_MEASUREMENTS)``, 0 where there is none; the number of
        groups; and the sizes, less one, of shape ``(MOST_GROUPS, 1)``.
    """
    rng = np.random.default_rng(seed)
    theta = rng.normal(MEAN_SCALE * rng.standard_normal(), BETWEEN, len(sizes))
    y = np.zeros((MOST_GROUPS, MOST_MEASUREMENTS), np.float32)
    less_one = np.zeros((MOST_GROUPS, 1), np.int64)
    for group, size in enumerate(sizes):
        y[group, :size] = rng.normal(theta[group], WITHIN, size)
        less_one[group] = size - 1
    return {"y": y, "num_groups": len(sizes), "sizes": less_one}


def exact(data: Mapping[str, Any]) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Mean and standard deviation of mu and of every theta, in closed form.

    :param data: What :func:`data_set` returned.

    >>> one = {"y": np.full((1, 1), 3.0), "num_groups": 1, "sizes": np.zeros((1, 1), int)}
    >>> round(float(exact(one)["mu"][0]), 4) == round(3 * 4 / (4 + 1 + 0.49), 4)
    True
    """
    number = int(data["num_groups"])
    sizes = np.asarray(data["sizes"])[:number, 0] + 1
    means = np.array([data["y"][j, :size].mean() for j, size in enumerate(sizes)], float)
    weights = 1 / (BETWEEN**2 + WITHIN**2 / sizes)  # of a group's mean, round mu
    variance = 1 / (weights.sum() + MEAN_SCALE**-2)
    mu = variance * (weights * means).sum()
    share = weights * BETWEEN**2  # how far theta moves from mu to the group's mean
    theta = mu + share * (means - mu)
    spread = BETWEEN**2 * (1 - share) + (1 - share) ** 2 * variance
    return {"mu": (np.array(mu), np.array(variance**0.5)), "theta": (theta, spread**0.5)}


def judge(draws: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, float]:
    """How far draws are from the exact posterior.

    :param draws: Of mu, shape ``(num_draws,)``, and theta, ``(num_draws, MOST_GROUPS, 1)``.
    :param data: The data set.
    :return: The largest error of a mean, in posterior standard deviations, and of a standard
        deviation, relative; over mu, and over all theta.
    """
    results = {}
    for site, (mean, deviation) in exact(data).items():
        own = np.asarray(draws[site], float)
        if site == "theta":
            own = own[:, : len(mean), 0]
        results[f"mean {site}"] = float(np.abs((own.mean(0) - mean) / deviation).max())
        results[f"sd {site}"] = float(np.abs(own.std(0) / deviation - 1).max())
    return results


def run(backend: str, args: argparse.Namespace, fit: Fit) -> dict[str, dict[str, float]]:
    """Train once, judge at all data sets, print the table, draw the picture.

    :param backend: Its name.
    :param args: Options from :func:`parse_args`.
    :param fit: Trains the posterior.
    :return: :func:`judge` of each data set.
    """
    start = time.perf_counter()
    draw = fit(args.num_simulations, args.seed)
    seconds = time.perf_counter() - start
    sets = {name: data_set(sizes, args.seed + 1) for name, sizes in DATA_SETS.items()}
    draws = {name: draw(data, args.num_draws) for name, data in sets.items()}
    results = {name: judge(draws[name], data) for name, data in sets.items()}
    print(f"{backend}: {args.num_simulations} simulations, trained once in {seconds:.0f} s")
    print("largest error of a mean, in posterior sd, and of an sd, relative\n")
    header = ["", *next(iter(results.values()))]
    print(format_table(header, [[name, *(f"{v:.3f}" for v in found.values())]
                                for name, found in results.items()]))  # fmt: skip
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "summary.json").write_text(json.dumps(results, indent=1) + "\n")
    figure = _figure(backend, sets, draws)
    figure.savefig(output / "amortized_plates.png", dpi=150, bbox_inches="tight")
    print(f"\npicture: {output / 'amortized_plates.png'}")
    return results


def _figure(backend: str, sets: Mapping[str, Any], draws: Mapping[str, Any]) -> Any:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(sets), figsize=(10, 3.4), layout="constrained", sharey=True)
    for ax, (name, data) in zip(axes, sets.items(), strict=True):
        answer, number = exact(data), int(data["num_groups"])
        for group, less_one in enumerate(np.asarray(data["sizes"])[:number, 0]):
            y = data["y"][group, : less_one + 1]
            ax.plot(np.full(len(y), group + 1), y, "_", color="0.6", markersize=7)
        means = np.append(answer["mu"][0], answer["theta"][0])
        deviations = np.append(answer["mu"][1], answer["theta"][1])
        own = np.c_[draws[name]["mu"], np.asarray(draws[name]["theta"])[:, :number, 0]]
        low, middle, high = np.percentile(own, [5, 50, 95], axis=0)
        place = np.arange(number + 1)
        ax.errorbar(place - 0.12, means, 1.645 * deviations, fmt="o", color=INK, markersize=3.5,
                    label="exact")  # fmt: skip
        ax.errorbar(place + 0.12, middle, [middle - low, high - middle], fmt="o", markersize=3.5,
                    color=COLOURS[1], label="amortised")  # fmt: skip
        ax.axvline(0.5, color="0.85", linewidth=0.8)
        ax.set(title=name, xlabel="mu, then the groups")
        ax.set_xticks(place, ["mu", *map(str, place[1:])], fontsize="small")
    axes[0].set_ylabel("median and 90 % interval")
    axes[0].legend(loc="upper right", fontsize="small", frameon=False)
    figure.suptitle(f"one posterior, groups of any size ({backend}); grey: measurements")
    return figure
