# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What ``examples/*/simulator.py`` share: options, tasks, judge, table and picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from spread_analysis.evaluation import mean_and_error
from spread_analysis.metrics import c2st
from spread_analysis.plots import COLOURS, INK
from spread_core.validation import FloatArray
from studies.options import add_run_options
from studies.simulator_tasks import TASKS, Observation, Table, Task, load_observations

#: Losses for training a guide, in the order of the table.
LOSSES = {
    "npe": "KL, density",
    "reverse-kl": "ReverseKL, implicit",
    "js": "JS .5, implicit",
    "kl": "KL, implicit",
}
#: The only one whose guide has a density, so that it needs no critic.
DENSITY = "npe"
#: C2ST beyond which a run counts as failed, for guides with a density and without.
LIMITS = {"gaussian_mixture": (0.58, 0.62), "gaussian_linear": (0.552, 0.552)}
#: Steps from one look at held-out simulations to the next.
CHECK_EVERY = 100


class Fit(NamedTuple):
    """One trained guide.

    :param draw: From a number of draws to draws of theta for each observation, on the table's
        scale, shape ``(num_observations, num_draws, dim)``.
    :param seconds: Wall time of training.
    """

    draw: Callable[[int], FloatArray]
    seconds: float


class Result(NamedTuple):
    """
    One trained guide and the exact posteriors.

    :param c2st: For every observation; 0.5 is perfect, 1 is separable.
    :param outside: Share of the draws that the prior excludes, which are drawn again.
    :param seconds: Wall time of training.
    """

    c2st: tuple[float, ...]
    outside: float
    seconds: float


# fit(loss, table, x, seed) -> a guide trained on the table, to be asked about the rows of x
FitGuide = Callable[[str, Table, FloatArray, int], Fit]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``simulator.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument("--losses", nargs="+", choices=tuple(LOSSES), default=list(LOSSES))
    parser.add_argument("--num-simulations", type=int, default=10_000, help="the whole budget")
    parser.add_argument("-n", "--num-steps", type=int, default=4000, help="of the guide")
    parser.add_argument("--critic-steps", type=int, default=2, help="for each of the guide's")
    parser.add_argument("-lr", "--learning-rate", type=float, default=1e-3, help="of all nets")
    parser.add_argument("--ema", type=float, default=0.999, help="average of an implicit guide")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--hidden-dim", type=int, default=64, help="of all nets")
    parser.add_argument("--extra-noise-dim", type=int, default=4, help="an implicit guide's noise "
                        "has this many dimensions more than theta")  # fmt: skip
    parser.add_argument("--num-components", type=int, default=8, help="of a guide with a density")
    parser.add_argument("--num-observations", type=int, choices=(1, 2, 3), default=3)
    parser.add_argument("--num-draws", type=int, default=10_000, help="judged for an observation")
    parser.add_argument("--data-dir", help="folder of the benchmark's observations and reference "
                        "posteriors; left out, both are drawn here")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--num-seeds", type=int, default=1, help="runs per task and loss")
    add_run_options(parser, backend, "simulator")
    args = parser.parse_args(argv)
    if args.smoke_test:
        args.num_simulations, args.num_draws, args.num_observations = 1000, 50, 1
        args.num_steps = min(args.num_steps, 30)
    return args


def draw_allowed(
    task: Task, fit: Fit, table: Table, x: FloatArray, num: int, max_rounds: int = 20
) -> tuple[list[FloatArray], float]:
    """Draws for every observation, those that the prior excludes replaced by others.

    :param task: The task.
    :param fit: The trained guide.
    :param table: The simulations that it was trained on, whose scale its draws are on.
    :param x: The observations, on that scale.
    :param num: Number of draws for an observation.
    :param max_rounds: How often to draw anew; excluded draws that are left then stay, to be judged.
    :return: Draws of shape ``(num, dim)`` for each observation, and the share that was excluded.
    """

    def draw() -> FloatArray:
        return table.unscale_theta(fit.draw(num), x[:, None])

    first = draws = draw()
    for _ in range(max_rounds):
        inside = task.in_support(draws)
        if inside.all():
            break
        draws = np.where(inside[..., None], draws, draw())
    return list(draws), 1 - float(task.in_support(first).mean())


def compare(backend: str, args: argparse.Namespace, fit: FitGuide) -> dict[str, Any]:
    """Train with every loss and seed on every task; print and draw the posteriors that were found.

    :param backend: Name of the backend.
    :param args: Options from :func:`parse_args`.
    :param fit: Trains one guide.
    :return: For each ``"task loss"`` a list of one :class:`Result` per seed.
    """
    seeds = range(args.seed, args.seed + args.num_seeds)
    results: dict[str, list[Result]] = {}
    shown: dict[str, dict[str, list[FloatArray]]] = {}
    observed: dict[str, list[Observation]] = {}
    with tqdm(total=len(args.tasks) * len(args.losses) * len(seeds)) as progress:
        for name in args.tasks:
            task = TASKS[name]
            observed[name] = load_observations(
                task, args.num_draws, args.data_dir, args.num_observations
            )
            x = np.stack([observation.x for observation in observed[name]])
            shown[name] = {}
            for seed in seeds:
                # Prior and simulator run here and nowhere else.
                table = Table.simulate(task, args.num_simulations, seed)
                for loss in args.losses:
                    progress.set_description(f"{name}, {LOSSES[loss]}, seed {seed}")
                    scaled = table.scale_x(x)
                    fitted = fit(loss, table, scaled, seed)
                    draws, outside = draw_allowed(task, fitted, table, scaled, args.num_draws)
                    scores = tuple(
                        c2st(o.posterior, d) for o, d in zip(observed[name], draws, strict=True)
                    )
                    result = Result(scores, outside, fitted.seconds)
                    results.setdefault(f"{name} {loss}", []).append(result)
                    shown[name].setdefault(loss, draws)
                    progress.update()
    for name in args.tasks:
        _print(name, args.losses, results)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {"seeds": list(seeds), "num_simulations": args.num_simulations}
    summary |= {key: [result._asdict() for result in runs] for key, runs in results.items()}
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    for name in args.tasks:
        path = output / f"{name}.png"
        _figure(backend, TASKS[name], observed[name], shown[name]).savefig(
            path, dpi=150, bbox_inches="tight"
        )
        print(f"picture: {path}")
    return results


def limit(task: str, loss: str) -> float:
    """C2ST that a run's mean over the observations should not exceed."""
    return LIMITS[task][loss != DENSITY]


def _print(name: str, losses: Sequence[str], results: dict[str, list[Result]]) -> None:
    task = TASKS[name]
    print(
        f"\n{name}: C2ST (0.5 is perfect; published at 10^4: NPE {task.published[0]}, "
        f"NRE {task.published[1]})"
    )
    print(f"{'loss':<21}{'mean':>15}{'limit':>7}{'failed':>8}{'outside':>9}{'seconds':>9}"
          "  each observation, seed by seed")  # fmt: skip
    for loss in losses:
        runs = results[f"{name} {loss}"]
        means = [float(np.mean(run.c2st)) for run in runs]
        failed = sum(mean > limit(name, loss) for mean in means)
        scores = " | ".join(" ".join(f"{score:.3f}" for score in run.c2st) for run in runs)
        print(
            f"{LOSSES[loss]:<21}{mean_and_error(means).format():>15}{limit(name, loss):>7.3f}"
            f"{f'{failed} of {len(runs)}':>8}{np.mean([run.outside for run in runs]):>9.3f}"
            f"{np.mean([run.seconds for run in runs]):>9.1f}  {scores}"
        )


def _figure(
    backend: str, task: Task, observed: list[Observation], shown: dict[str, list[FloatArray]]
) -> Any:
    """Two coordinates of the draws for every observation: the posterior, and each loss's guide."""
    columns = {"exact posterior": [o.posterior for o in observed]}
    columns |= {LOSSES[loss]: draws for loss, draws in shown.items()}
    shape = len(observed), len(columns)
    figure = Figure((2.3 * shape[1], 2.35 * shape[0] + 0.4), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    for row, observation, i in zip(axes, observed, range(len(observed)), strict=True):
        reference = observation.posterior[:, :2]
        centre = np.median(reference, axis=0)
        reach = 1.15 * np.abs(reference - centre).max()
        for ax, (title, draws), k in zip(row, columns.items(), range(shape[1]), strict=True):
            colour = INK if k == 0 else COLOURS[(k - 1) % len(COLOURS)]
            ax.plot(*draws[i][:2000, :2].T, ".", color=colour, markersize=1.6, alpha=0.5,
                    markeredgewidth=0)  # fmt: skip
            ax.plot(*observation.theta[:2], "+", color="#c02020", markersize=9)
            ax.set(xlim=(centre[0] - reach, centre[0] + reach),
                   ylim=(centre[1] - reach, centre[1] + reach), aspect="equal")  # fmt: skip
            ax.tick_params(labelsize=7, labelleft=k == 0)
            if i == 0:
                ax.set_title(title, fontsize=10, color=colour)
        row[0].set_ylabel(f"observation {i + 1}\n" + r"$\theta_2$", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel(r"$\theta_1$", fontsize=9)
    figure.suptitle(f"{task.name}: draws of theta given x; + is the theta behind x ({backend})")
    return figure
