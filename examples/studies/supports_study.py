# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What ``examples/*/disjoint_supports.py`` share: options, the runs, the table and the picture."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from spread_analysis.plots import COLOURS, INK
from spread_analysis.reference import class_entropy, two_deltas_js, two_deltas_kl
from spread_core.monitors import SupportMismatchWarning
from spread_core.validation import FloatArray
from studies.options import add_run_options


class Run(NamedTuple):
    """
    The course of one run, after every step of SVI.

    :param theta: Place of the model's line, shape ``(num_steps,)``.
    :param losses: What the loss reported, an estimate of JS_pi in nats, shape ``(num_steps,)``.
    """

    theta: FloatArray
    losses: FloatArray


# fit(noise_scale, seed) -> the run; a noise scale of None is no noise
FitLine = Callable[[float | None, int], Run]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``disjoint_supports.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--distance", type=float, default=2.0, help="of the two lines at first")
    parser.add_argument("--noise-scale", type=float, default=1.0, help="of the spread noise")
    parser.add_argument("--pi", type=float, default=0.5, help="weight of the data in JS_pi")
    parser.add_argument("-n", "--num-steps", type=int, default=1000, help="of the generator")
    parser.add_argument("--warm-up", type=int, default=500, help="steps of the critic alone")
    parser.add_argument("-lr", "--learning-rate", type=float, default=0.3, help="generator's, SGD")
    parser.add_argument("--critic-learning-rate", type=float, default=3e-3)
    parser.add_argument("--critic-steps", type=int, default=2, help="for each of the generator")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--hidden-dim", type=int, default=64, help="of the critic")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--num-seeds", type=int, default=1, help="runs with noise and without")
    add_run_options(parser, backend, "disjoint-supports")
    args = parser.parse_args(argv)
    if not 0.0 < args.pi < 1.0:
        parser.error("--pi: the weight of the data lies strictly between 0 and 1")
    if args.distance == 0.0:
        parser.error("--distance: lines at distance zero do have a common support")
    if args.smoke_test:
        # Faster, so that the critic gets perfect, and the warning appears, in a few hundred steps.
        args.num_steps, args.critic_learning_rate = min(args.num_steps, 200), 1e-2
    return args


def compare(backend: str, args: argparse.Namespace, fit: FitLine) -> dict[str, Any]:
    """Train with noise and without for every seed; print and draw where the line went.

    :param backend: Name of the backend.
    :param args: Options from :func:`parse_args`.
    :param fit: Trains one model.
    :return: For ``"no noise"`` and ``"noise"`` the runs and, under ``"warnings"``, how many
        :class:`SupportMismatchWarning` each of them raised.
    """
    settings = {"no noise": None, "noise": args.noise_scale}
    results: dict[str, Any] = {name: [] for name in settings} | {"warnings": {}}
    message = ""
    with tqdm(total=2 * args.num_seeds) as progress:
        for name, scale in settings.items():
            counts = results["warnings"].setdefault(name, [])
            for seed in range(args.seed, args.seed + args.num_seeds):
                progress.set_description(name)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", SupportMismatchWarning)
                    results[name].append(fit(scale, seed))
                mismatch = [w for w in caught if issubclass(w.category, SupportMismatchWarning)]
                for other in caught:
                    if other not in mismatch:
                        warnings.warn_explicit(
                            other.message, other.category, other.filename, other.lineno
                        )
                counts.append(len(mismatch))
                message = str(mismatch[0].message) if mismatch else message
                progress.update()
    if message:
        print(f"\nSupportMismatchWarning: {message}")
    _print(args, results)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    summary = {
        name: {"theta": [float(run.theta[-1]) for run in results[name]], "warnings": counts}
        for name, counts in results["warnings"].items()
    }
    text = json.dumps({"distance": args.distance, "noise_scale": args.noise_scale} | summary)
    (output / "summary.json").write_text(text + "\n")
    _figure(backend, args, results).savefig(output / "disjoint_supports.png", dpi=150)
    print(f"picture: {output / 'disjoint_supports.png'}")
    return results


def exact_divergence(theta: FloatArray, distance: float, noise_scale: float, pi: float) -> Any:
    """JS_pi of the two lines after Gaussian noise, in nats, with the model's line at ``theta``.

    What differs is the first coordinate alone, which is a point on either side.

    >>> round(float(exact_divergence(0.0, 2.0, 1.0, 0.5)), 7)
    0.3368308
    """
    return two_deltas_js(np.abs(distance - np.asarray(theta)), noise_scale, pi=pi)


def _print(args: argparse.Namespace, results: dict[str, Any]) -> None:
    kl = float(two_deltas_kl(abs(args.distance), args.noise_scale))
    start = float(exact_divergence(np.zeros(()), args.distance, args.noise_scale, args.pi))
    limit = class_entropy(args.pi)
    # The critic has been trained, and the model has not moved yet.
    window = slice(args.warm_up // 2, args.warm_up)
    print(f"\ndata on x1 = {args.distance:g}, model on x1 = theta, at first 0; pi = {args.pi:g}")
    print(
        f"spread by s = {args.noise_scale:g}: KL = a^2 / (2 s^2) = {kl:g}, JS = {start:.4f}; ",
        end="",
    )
    print(f"unspread: KL infinite, JS = H(pi) = {limit:.4f}")
    print(f"{'':>10}{'exact JS at 0':>15}{'reported':>10}{'theta at the end':>18}"
          f"{'largest error':>15}{'warnings':>10}")  # fmt: skip
    for name, exact in (("no noise", limit), ("noise", start)):
        runs = results[name]
        final = np.array([run.theta[-1] for run in runs])
        reported = np.mean([run.losses[window].mean() for run in runs])
        error = np.abs(final / args.distance - 1).max()
        counts = sorted(set(results["warnings"][name]))
        print(
            f"{name:>10}{exact:>15.4f}{reported:>10.4f}{final.mean():>18.4f}"
            f"{100 * error:>13.2f} %{'-'.join(map(str, counts)):>10}"
        )


def _figure(backend: str, args: argparse.Namespace, results: dict[str, Any]) -> Any:
    figure = Figure((10.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = {"no noise": "no noise", "noise": f"noise, s = {args.noise_scale:g}"}
    for name, colour in zip(labels, (COLOURS[1], COLOURS[0]), strict=True):
        for j, run in enumerate(results[name]):
            steps = np.arange(1, len(run.theta) + 1)
            label = None if j else labels[name]
            left.plot(steps, run.theta, color=colour, linewidth=1.2, label=label)
        # The losses of single batches are noisy: the mean over seeds and some steps.
        losses = np.mean([run.losses for run in results[name]], 0)
        width = max(1, len(losses) // 100)
        count = len(losses) // width
        smooth = losses[: count * width].reshape(count, width).mean(1)
        middle = (np.arange(count) + 0.5) * width
        right.plot(middle, smooth, color=colour, linewidth=1.2, label=f"reported, {labels[name]}")
    theta = np.mean([run.theta for run in results["noise"]], 0)[::10]
    exact = exact_divergence(theta, args.distance, args.noise_scale, args.pi)
    steps = 1 + 10 * np.arange(len(theta))
    right.plot(steps, exact, "--", color=INK, linewidth=1.2, label="exact, at the mean theta")
    left.axhline(args.distance, color="0.6", linewidth=0.9, linestyle="--")
    left.annotate("the data's line", (0, args.distance), fontsize=8, color="0.35",
                  xytext=(4, 4), textcoords="offset points")  # fmt: skip
    limit = class_entropy(args.pi)
    right.axhline(limit, color="0.6", linewidth=0.9, linestyle="--")
    right.annotate(r"$H(\pi)$", (len(exact) * 10, limit), fontsize=8, color="0.35", ha="right",
                   xytext=(0, 4), textcoords="offset points")  # fmt: skip
    low, high = sorted((0.0, args.distance))
    margin = 0.12 * (high - low)
    left.set(xlabel="step", ylabel=r"$\theta$", ylim=(low - margin, high + margin))
    left.legend(frameon=False, fontsize=8, loc="center right")
    right.set(xlabel="step", ylabel=r"$JS_\pi$ in nats", ylim=(-0.03 * limit, 1.12 * limit))
    right.legend(frameon=False, fontsize=8, loc="center right")
    for ax in (left, right):
        ax.axvspan(0, args.warm_up, color="0.93", linewidth=0, zorder=0)
        ax.set_xlim(0, None)
        ax.spines[["top", "right"]].set_visible(False)
    left.set_title("place of the model's line (grey: critic alone)", fontsize=11)
    right.set_title("divergence", fontsize=11)
    figure.suptitle(rf"Parallel lines under $JS_\pi$ ({backend})")
    return figure
