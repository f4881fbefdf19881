# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What ``examples/*/js_interpolation.py`` share: options, exact optima, the tables, the picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from spread_analysis.plots import COLOURS, INK
from spread_analysis.reference import isotropic_js_optimum, mixture_js_optimum
from spread_core.validation import FloatArray
from studies.options import add_run_options

#: Variances of the correlated Gaussian along its axes, which lie at 45 degrees.
EIGENVALUES = (0.1, 1.9)
#: Means +-a and standard deviation of the two modes.
MODE, WIDTH = 2.0, 0.45
#: Mean and standard deviation from which the Gaussian sets out to fit the mixture. Covering both
#: modes and sitting on one are both minima, between which chance decides near pi = 0.1 from here.
MIXTURE_START = (1.5, 0.7)
#: Relative error of a variance from which a run counts as failed.
TOLERANCE = 0.03

_EXACT = {"color": INK, "linestyle": "--", "linewidth": 2.4, "alpha": 0.6, "zorder": 1.5}
_STYLES = {"mlp": "-", "quadratic": ":"}


class CriticSettings(NamedTuple):
    """How a critic is trained.

    :param learning_rate: Of the critic, at the first step.
    :param steps: Steps of the critic for each of the generator.
    """

    learning_rate: float
    steps: int


# A critic that is slow against the generator lags behind it, and the two orbit the optimum.
CRITICS = {"mlp": CriticSettings(3e-3, 2), "quadratic": CriticSettings(1e-2, 5)}


class Fit(NamedTuple):
    """The model at the end of one run.

    :param loc: Its mean.
    :param std: Its standard deviation.
    :param divergence: What the loss reports at fresh data, an estimate of JS_pi in nats.
    """

    loc: float
    std: float
    divergence: float


# fit(problem, critic, pi, seed) -> the end of one run; problem is "gaussian" or "mixture"
FitModel = Callable[[str, str, float, int], Fit]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``js_interpolation.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pi", type=float, nargs="+", default=[0.1, 0.5, 0.9])
    parser.add_argument("--critics", nargs="+", choices=tuple(CRITICS), default=list(CRITICS))
    parser.add_argument(
        "--problems", nargs="+", choices=("gaussian", "mixture"), default=["gaussian", "mixture"]
    )
    parser.add_argument("-n", "--num-steps", type=int, default=1500, help="of the generator")
    parser.add_argument("--warm-up", type=int, default=200, help="steps of the critic alone")
    parser.add_argument("-lr", "--learning-rate", type=float, default=5e-3, help="generator's")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--hidden-dim", type=int, default=64, help="of the MLP critic")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--num-seeds", type=int, default=1, help="runs per setting")
    add_run_options(parser, backend, "js-interpolation")
    args = parser.parse_args(argv)
    if not all(0.0 < pi < 1.0 for pi in args.pi):
        parser.error("--pi: every weight of the data lies strictly between 0 and 1")
    if args.smoke_test:
        args.pi, args.num_steps = [0.5], min(args.num_steps, 200)
        args.batch_size, args.learning_rate = min(args.batch_size, 256), 2 * args.learning_rate
    return args


def gaussian_covariance() -> FloatArray:
    """Return the covariance of the correlated Gaussian, shape ``(2, 2)``."""
    axes = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2.0)
    return (axes * EIGENVALUES[::-1]) @ axes.T


def _log_normal(x: FloatArray, loc: float, variance: float) -> FloatArray:
    return -0.5 * (np.square(x - loc) / variance + np.log(2 * np.pi * variance))


def exact_divergence(problem: str, loc: float, std: float, pi: float) -> float:
    r"""JS_pi of the problem's data from a Gaussian model, in nats, by the trapezoidal rule.

    :param problem: ``"gaussian"``, whose model is isotropic with mean zero, or ``"mixture"``.
    :param loc: Mean of the model; without effect on ``"gaussian"``.
    :param std: Standard deviation of the model.
    :param pi: Weight of the data, strictly between 0 and 1.

    >>> round(exact_divergence("gaussian", 0.0, 0.43589**0.5, 0.5), 4)
    0.1859
    """
    if problem == "gaussian":
        # In the coordinates of the axes. The rule converges faster than any power of the step for
        # a smooth integrand that vanishes at both ends.
        scales = np.sqrt(EIGENVALUES)
        nodes = [np.linspace(-9, 9, 601) * max(scale, std) for scale in scales]
        weight = np.prod([axis[1] - axis[0] for axis in nodes])
        u, v = nodes[0][:, None], nodes[1][None]
        log_p = _log_normal(u, 0.0, EIGENVALUES[0]) + _log_normal(v, 0.0, EIGENVALUES[1])
        log_q = _log_normal(u, 0.0, std**2) + _log_normal(v, 0.0, std**2)
    else:
        reach = max(MODE, abs(loc)) + 9 * max(WIDTH, std)
        x = np.linspace(-reach, reach, 4001)
        weight = x[1] - x[0]
        log_p, log_q = mixture_log_density(x), _log_normal(x, loc, std**2)
    log_m = np.logaddexp(np.log(pi) + log_p, np.log1p(-pi) + log_q)
    integrand = pi * np.exp(log_p) * (log_p - log_m)
    integrand += (1 - pi) * np.exp(log_q) * (log_q - log_m)
    return float(weight * integrand.sum())


def mixture_log_density(x: FloatArray) -> FloatArray:
    """Log density of the mixture at ``x``, any shape."""
    modes = [_log_normal(x, loc, WIDTH**2) for loc in (-MODE, MODE)]
    return np.logaddexp(*modes) - np.log(2.0)


def optimum(problem: str, pi: float) -> tuple[float, float]:
    """Mean and standard deviation that minimise JS_pi."""
    if problem == "gaussian":
        return 0.0, isotropic_js_optimum(EIGENVALUES, pi) ** 0.5
    return mixture_js_optimum(MODE, WIDTH, pi)


def compare(backend: str, args: argparse.Namespace, fit: FitModel) -> dict[str, Any]:
    """Train on both problems for every pi, critic and seed; print and draw what was learned.

    :param backend: Name of the backend.
    :param args: Options from :func:`parse_args`.
    :param fit: Trains one model.
    :return: For each ``"gaussian mlp"``, ``"gaussian quadratic"`` and ``"mixture mlp"`` an array of
        shape ``(num_pi, num_seeds, 3)`` of means, standard deviations and reported divergences.
    """
    # The log-ratio of a mixture and a Gaussian is not quadratic.
    plan = [(p, c) for p in args.problems for c in (args.critics if p == "gaussian" else ["mlp"])]
    seeds = range(args.seed, args.seed + args.num_seeds)
    fits: dict[str, Any] = {}
    with tqdm(total=len(plan) * len(args.pi) * len(seeds)) as progress:
        for problem, critic in plan:
            runs = []
            for pi in args.pi:
                for seed in seeds:
                    progress.set_description(f"{problem}, {critic} critic, pi={pi:g}")
                    runs.append(fit(problem, critic, pi, seed))
                    progress.update()
            # The mirror image of a fit to the mixture is as good.
            found = np.abs(np.array(runs)).reshape(len(args.pi), len(seeds), 3)
            fits[f"{problem} {critic}"] = found
    if "gaussian" in args.problems:
        _print_gaussian(args, fits)
    if "mixture" in args.problems:
        _print_mixture(args, fits["mixture mlp"])
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    summary = {"pi": args.pi, "seeds": list(seeds)} | {k: v.tolist() for k, v in fits.items()}
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    _figure(backend, args, fits).savefig(output / "js_interpolation.png", dpi=150)
    print(f"\npicture: {output / 'js_interpolation.png'}")
    return fits


def _print_gaussian(args: argparse.Namespace, fits: dict[str, Any]) -> None:
    print("\nisotropic Gaussian on a correlated one: its variance v, and errors of all seeds in %")
    print(
        f"{'pi':>6}{'critic':>11}{'exact v':>9}{'mean v':>9}{'exact JS':>10}{'reported':>10}  ",
        end="",
    )
    print("errors")
    failed = total = 0
    for i, pi in enumerate(args.pi):
        _, std = optimum("gaussian", pi)
        exact_js = exact_divergence("gaussian", 0.0, std, pi)
        for critic in args.critics:
            _, stds, reported = fits[f"gaussian {critic}"][i].T
            errors = (stds / std) ** 2 - 1
            failed, total = failed + (np.abs(errors) > TOLERANCE).sum(), total + len(errors)
            print(
                f"{pi:>6g}{critic:>11}{std**2:>9.5f}{(stds**2).mean():>9.5f}{exact_js:>10.4f}"
                f"{reported.mean():>10.4f}  " + " ".join(f"{100 * e:+.2f}" for e in errors)
            )
    print(f"beyond {100 * TOLERANCE:g} %: {failed} of {total} runs")


def _print_mixture(args: argparse.Namespace, fits: FloatArray) -> None:
    print("\nGaussian on two modes: |mean| and standard deviation, mean over seeds (largest error)")
    print(
        f"{'pi':>6}{'exact':>16}{'|mean|':>18}{'std':>18}{'exact JS':>10}"
        f"{'reported':>10}{'found':>9}"
    )
    for pi, found in zip(args.pi, fits, strict=True):
        exact = optimum("mixture", pi)
        exact_js = exact_divergence("mixture", *exact, pi)
        # The other minimum is off by a factor of four.
        hits = (np.abs(found[:, 1] / exact[1] - 1) < 0.1).sum()
        cells = []
        for values, truth in zip(found.T[:2], exact, strict=True):
            cells.append(f"{values.mean():.4f} ({np.abs(values - truth).max():.4f})")
        print(
            f"{pi:>6g}{f'{exact[0]:.4f}, {exact[1]:.4f}':>16}{cells[0]:>18}{cells[1]:>18}"
            f"{exact_js:>10.4f}{found[:, 2].mean():>10.4f}{f'{hits} of {len(found)}':>9}"
        )


def _figure(backend: str, args: argparse.Namespace, fits: dict[str, Any]) -> Any:
    shape = len(args.problems), len(args.pi) + 1
    figure = Figure((2.9 * len(args.pi) + 4.2, 3.4 * shape[0]), layout="constrained")
    widths = [1.0] * len(args.pi) + [1.35]
    rows = figure.subplots(*shape, squeeze=False, width_ratios=widths)
    for row, problem in zip(rows, args.problems, strict=True):
        found = {name.split()[1]: f for name, f in fits.items() if name.startswith(problem)}
        draw = _draw_ellipses if problem == "gaussian" else _draw_densities
        for i, pi in enumerate(args.pi):
            draw(row[i], pi, {critic: fit[i] for critic, fit in found.items()})
        row[0].legend(frameon=False, fontsize=8, loc="upper left")
        curve = _draw_variances if problem == "gaussian" else _draw_moments
        curve(row[-1], args.pi, found)
        for ax in row:
            ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(rf"$JS_\pi$ from covering to mode seeking, learned by a critic ({backend})")
    return figure


def _draw_ellipses(ax: Any, pi: float, found: dict[str, FloatArray]) -> None:
    """Draw the contours at one and two standard deviations."""
    angle = np.linspace(0, 2 * np.pi, 400)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    root = np.linalg.cholesky(gaussian_covariance())
    _, std = optimum("gaussian", pi)
    for radius in (1, 2):
        first = radius == 1
        ax.fill(*(radius * root @ circle), color="0.55", alpha=0.25, linewidth=0,
                label="data" if first else None)  # fmt: skip
        for (critic, fit), colour in zip(found.items(), COLOURS, strict=False):
            for j, learned in enumerate(fit[:, 1]):
                label = f"{critic} critic" if first and j == 0 else None
                ax.plot(*(radius * learned * circle), _STYLES[critic], color=colour, linewidth=1.2,
                        label=label)  # fmt: skip
        ax.plot(*(radius * std * circle), **_EXACT, label="exact" if first else None)
    ax.set(xlim=(-2.9, 2.9), ylim=(-2.9, 3.6), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    ax.set_title(rf"$\pi = {pi:g}$", fontsize=11)


def _draw_densities(ax: Any, pi: float, found: dict[str, FloatArray]) -> None:
    x = np.linspace(-6, 6, 600)
    ax.fill_between(x, np.exp(mixture_log_density(x)), color="0.55", alpha=0.25, linewidth=0,
                    label="data")  # fmt: skip
    for j, (loc, std, _) in enumerate(found["mlp"]):
        density = np.exp(_log_normal(x, loc, std**2))
        ax.plot(x, density, color=COLOURS[0], linewidth=1.2, label=None if j else "mlp critic")
    loc, std = optimum("mixture", pi)
    ax.plot(x, np.exp(_log_normal(x, loc, std**2)), **_EXACT, label="exact")
    ax.set(xlabel="$x$", ylabel="density", ylim=(0, 1.0), xlim=(-6, 6))
    ax.set_title(rf"$\pi = {pi:g}$", fontsize=11)


def _scatter(ax: Any, pis: Sequence[float], values: FloatArray, shift: float, **style: Any) -> None:
    label = style.pop("label")
    for j, column in enumerate(values.T):
        ax.plot(np.array(pis) + shift, column, linestyle="", label=None if j else label, **style)


def _draw_variances(ax: Any, pis: Sequence[float], found: dict[str, FloatArray]) -> None:
    grid = (
        np.sin(np.linspace(0, np.pi / 2, 25)) ** 2
    )  # denser at the ends, where the curve is steep
    exact = [optimum("gaussian", pi)[1] ** 2 for pi in grid]
    ax.plot(grid, exact, **_EXACT, label="exact")
    for k, (critic, fit) in enumerate(found.items()):
        _scatter(ax, pis, fit[..., 1] ** 2, 0.02 * (k - (len(found) - 1) / 2), marker="o",
                 markersize=4, color=COLOURS[k], label=f"{critic} critic")  # fmt: skip
    ax.plot([0, 1], [exact[0], exact[-1]], "D", color=INK, markersize=4, markerfacecolor="white")
    ax.annotate("KL[P||Q]", (0, exact[0]), fontsize=8, color="0.35", xytext=(8, 0),
                textcoords="offset points", va="center")  # fmt: skip
    ax.annotate("KL[Q||P]", (1, exact[-1]), fontsize=8, color="0.35", xytext=(4, -14),
                textcoords="offset points", ha="right")  # fmt: skip
    ax.set(xlabel=r"$\pi$", ylabel="variance of the isotropic Gaussian", ylim=(0, 1.1))
    ax.legend(frameon=False, fontsize=8, loc="upper right")


def _draw_moments(ax: Any, pis: Sequence[float], found: dict[str, FloatArray]) -> None:
    grid = np.linspace(0, 1, 41)
    exact = np.array([optimum("mixture", pi) for pi in grid])
    jump = int(np.argmax(np.abs(np.diff(exact[:, 0])))) + 1
    for k, name in enumerate(("|mean|", "standard deviation")):
        # The optimum jumps: no line joins the two branches.
        for part in (slice(0, jump), slice(jump, None)):
            ax.plot(grid[part], exact[part, k], "--", color=COLOURS[k + 2], linewidth=1.2,
                    label=f"{name}, exact" if part.start == 0 else None)  # fmt: skip
        _scatter(ax, pis, found["mlp"][..., k], 0.0, marker="os"[k], markersize=4,
                 color=COLOURS[k + 2], label=name)  # fmt: skip
    ax.set(xlabel=r"$\pi$", ylabel="Gaussian fitted to the mixture", ylim=(-0.15, 2.9))
    ax.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
