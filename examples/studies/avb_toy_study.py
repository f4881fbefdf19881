# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What ``examples/*/avb_toy.py`` share: options, log p(x) by quadrature, table and picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy import special, stats
from tqdm import tqdm

from spread_analysis.plots import COLOURS
from spread_analysis.reference import FOUR_POINTS, FOUR_POINTS_OPTIMUM
from spread_core.validation import FloatArray
from studies.options import add_run_options

#: Losses, as they are called on the command line and in the tables.
LOSSES = ("vae", "avb", "semi-implicit")
#: Mean log p(x) in nats that an implicit guide should reach.
TARGET = -1.42

_TITLES = {"vae": "VAE", "avb": "AVB", "semi-implicit": "semi-implicit"}
_REACH, _NODES = 6.0, 241


class Fit(NamedTuple):
    """Model and guide at the end of one run.

    :param codes: Draws of the guide for each of the four points, shape ``(4, num_draws, 2)``.
    :param grid_logits: The decoder's output at :func:`latent_grid`, shape ``(num_nodes, 4)``.
    :param elbo: The value of the loss at fresh draws, with its sign changed and divided by four.
    """

    codes: FloatArray
    grid_logits: FloatArray
    elbo: float


class Result(NamedTuple):
    """
    One run and the optimum, in nats per point.

    :param log_p: Mean over the points of log p(x), by quadrature.
    :param elbo: What the loss reported.
    :param worst: log p(x) of the least probable point.
    """

    log_p: float
    elbo: float
    worst: float


# fit(loss, seed) -> the end of one run
FitModel = Callable[[str, int], Fit]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``avb_toy.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("-n", "--num-steps", type=int, default=6000, help="of model and guide")
    parser.add_argument("-lr", "--learning-rate", type=float, default=1e-3, help="theirs")
    parser.add_argument("--critic-learning-rate", type=float, default=2e-3)
    parser.add_argument("--critic-steps", type=int, default=2, help="for each of the guide")
    parser.add_argument("--copies", type=int, default=32, help="of the four points in a batch")
    parser.add_argument("--num-mixture", type=int, default=20, help="of the semi-implicit ELBO")
    parser.add_argument("--kernel-scale", type=float, default=0.3, help="its kernel's, at first")
    parser.add_argument("--noise-dim", type=int, default=3, help="of the implicit guides")
    parser.add_argument("--hidden-dim", type=int, default=64, help="of all nets")
    parser.add_argument("--num-evaluations", type=int, default=100, help="of the loss at the end")
    parser.add_argument("--num-draws", type=int, default=1000, help="of each code at the end")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--num-seeds", type=int, default=1, help="runs per loss")
    add_run_options(parser, backend, "avb-toy")
    args = parser.parse_args(argv)
    if args.smoke_test:
        args.num_steps, args.num_evaluations = min(args.num_steps, 30), 5
        args.num_draws = min(args.num_draws, 100)
    return args


def batch(copies: int) -> FloatArray:
    """The four points, ``copies`` times over, shape ``(4 * copies, 4)``."""
    return np.tile(FOUR_POINTS, (copies, 1)).astype(np.float32)


def latent_grid() -> FloatArray:
    """Nodes of the quadrature over z, shape ``(num_nodes, 2)``."""
    axis = np.linspace(-_REACH, _REACH, _NODES)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)


def log_likelihoods(grid_logits: ArrayLike) -> FloatArray:
    """Log p(x|z) in nats of the four points at every node, shape ``(num_nodes, 4)``.

    :param grid_logits: Of the four pixels, shape ``(num_nodes, 4)``.
    """
    logits = np.asarray(grid_logits, np.float64)
    # One pixel is on and the others are off.
    off = special.log_expit(-logits)
    return off.sum(-1, keepdims=True) - off + special.log_expit(logits)


def log_evidence(grid_logits: ArrayLike) -> FloatArray:
    """Log p(x) in nats of the four points, shape ``(4,)``, by the trapezoidal rule.

    :param grid_logits: The decoder's output at :func:`latent_grid`, shape ``(num_nodes, 4)``.

    >>> sure = np.full((_NODES**2, 4), -50.0)
    >>> sure[:, 2] = 50.0  # always the third point
    >>> bool(abs(log_evidence(sure)[2]) < 1e-8)
    True
    """
    log_prior = stats.norm.logpdf(latent_grid().astype(np.float64)).sum(-1)
    step = 2 * _REACH / (_NODES - 1)
    joint = log_likelihoods(grid_logits) + log_prior[:, None]
    return np.asarray(special.logsumexp(joint, 0) + 2 * np.log(step))


def compare(backend: str, args: argparse.Namespace, fit: FitModel) -> dict[str, list[Result]]:
    """Train with every loss and seed; print log p(x), draw the codes.

    :param backend: Name of the backend.
    :param args: Options from :func:`parse_args`.
    :param fit: Trains one model.
    :return: For each loss a list of one :class:`Result` per seed.
    """
    seeds = range(args.seed, args.seed + args.num_seeds)
    results: dict[str, list[Result]] = {}
    first: dict[str, Fit] = {}
    with tqdm(total=len(args.losses) * len(seeds)) as progress:
        for name in args.losses:
            for seed in seeds:
                progress.set_description(name)
                run = fit(name, seed)
                log_p = log_evidence(run.grid_logits)
                result = Result(float(log_p.mean()), float(run.elbo), float(log_p.min()))
                results.setdefault(name, []).append(result)
                first.setdefault(name, run)
                progress.update()
    _print(results)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    runs = {name: [run._asdict() for run in value] for name, value in results.items()}
    text = json.dumps({"seeds": list(seeds), "runs": runs}, indent=1)
    (output / "summary.json").write_text(text + "\n")
    _figure(backend, first, results).savefig(output / "avb_toy.png", dpi=150, bbox_inches="tight")
    print(f"\npicture: {output / 'avb_toy.png'}")
    return results


def _print(results: dict[str, list[Result]]) -> None:
    print(f"\nmean log p(x) of the four points in nats; optimum -log 4 = {FOUR_POINTS_OPTIMUM:.4f}")
    print(f"{'':>15}{'log p':>9}{'reported':>10}{f'>= {TARGET:g}':>10}  log p, seed by seed")
    for name, runs in results.items():
        values = [run.log_p for run in runs]
        reached = f"{sum(value >= TARGET for value in values)} of {len(runs)}"
        print(
            f"{name:>15}{np.mean(values):>9.4f}{np.mean([run.elbo for run in runs]):>10.4f}"
            f"{reached:>10}  " + "  ".join(f"{value:.4f}" for value in values)
        )


def _figure(backend: str, fits: dict[str, Fit], results: dict[str, list[Result]]) -> Any:
    figure = Figure((3.6 * len(fits) + 0.4, 4.1), layout="constrained")
    (row,) = figure.subplots(1, len(fits), squeeze=False, sharex=True, sharey=True)
    for ax, (name, run) in zip(row, fits.items(), strict=True):
        for point, (codes, colour) in enumerate(zip(run.codes, COLOURS, strict=False)):
            ax.scatter(*codes.T, s=5, color=colour, alpha=0.5, linewidth=0)
            label = "".join("1" if pixel == point else "0" for pixel in range(4))
            ax.scatter([], [], s=25, color=colour, label=f"x = {label}")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set(aspect="equal", xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), xlabel="$z_1$")
        ax.set_title(f"{_TITLES[name]}: log p(x) = {results[name][0].log_p:.3f}", fontsize=11)
    row[0].set_ylabel("$z_2$")
    handles, labels = row[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    figure.suptitle(
        f"Codes of four points; optimum log p(x) = {FOUR_POINTS_OPTIMUM:.3f} ({backend})"
    )
    return figure
