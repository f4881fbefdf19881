# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What ``examples/*/bimodal_posterior.py`` share: options, the table and the picture."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy import stats
from tqdm import tqdm

from spread_analysis.evaluation import mean_and_error
from spread_analysis.plots import COLOURS, INK
from spread_analysis.reference import (
    BimodalPosterior,
    bimodal_gaussian_gap,
    bimodal_posterior,
)
from spread_core.validation import FloatArray
from studies.options import add_run_options

#: Losses, as they are called on the command line and in the tables.
LOSSES = ("adaptive", "automatic", "plain", "semi-implicit", "normal")
#: A run has both modes if the smaller has this probability at least.
LEAST_MASS = 0.4

_TITLES = {
    "adaptive": "contrast ELBO, adaptive",
    "automatic": "contrast ELBO, AutoImplicit",
    "plain": "contrast ELBO, plain",
    "semi-implicit": "semi-implicit ELBO",
    "normal": "Normal guide",
}


class Fit(NamedTuple):
    """The guide at the end of one run.

    :param draws: Draws of z, shape ``(num_draws,)``.
    :param estimates: The value of the loss at fresh draws, with its sign changed: independent
        estimates of the ELBO in nats, shape ``(num_evaluations,)``.
    """

    draws: FloatArray
    estimates: ArrayLike


class Result(NamedTuple):
    """
    One run and the exact posterior.

    :param gap: Mean of the ELBO's estimates minus the log evidence, in nats.
    :param error: Standard error of that mean.
    :param kl: KL divergence of the guide from the posterior in nats, estimated from draws alone.
    :param mean_abs: :math:`E|z|`.
    :param positive: Probability of ``z > 0``.
    :param spread: Standard deviation of ``|z|``, divided by that of the posterior.
    """

    gap: float
    error: float
    kl: float
    mean_abs: float
    positive: float
    spread: float


class Case(NamedTuple):
    """
    What is known of z.

    :param scale: Standard deviation of x given z.
    :param observed: The x that is seen.
    """

    scale: float
    observed: float

    def __str__(self) -> str:
        return f"s = {self.scale:g}, x = {self.observed:g}"


# fit(loss, case, seed) -> the end of one run
FitGuide = Callable[[str, Case, int], Fit]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``bimodal_posterior.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 0.25], help="of x given z")
    parser.add_argument("--observed", type=float, nargs="+", default=[1.0], help="the x seen")
    parser.add_argument("-n", "--num-steps", type=int, default=3000, help="of the guide")
    parser.add_argument("--warm-up", type=float, default=0.2, help="share of the steps over which "
                        "the weight of the likelihood rises to one")  # fmt: skip
    parser.add_argument("-lr", "--learning-rate", type=float, default=1e-3, help="guide's")
    parser.add_argument("--critic-learning-rate", type=float, default=2e-3)
    parser.add_argument("--critic-steps", type=int, default=2, help="for each of the guide")
    parser.add_argument("--num-particles", type=int, default=8, help="draws of the guide a step")
    parser.add_argument("--num-moment-draws", type=int, default=1024, help="for each of them")
    parser.add_argument("--num-critic-draws", type=int, default=32, help="for each of them")
    parser.add_argument("--num-mixture", type=int, default=20, help="of the semi-implicit ELBO")
    parser.add_argument("--kernel-scale", type=float, default=0.3, help="its kernel's, at first")
    parser.add_argument("--noise-dim", type=int, default=4, help="of the guide")
    parser.add_argument("--hidden-dim", type=int, default=32, help="of guide and critic")
    parser.add_argument("--num-evaluations", type=int, default=400, help="of the loss at the end")
    parser.add_argument("--num-draws", type=int, default=100_000, help="of the guide at the end")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--num-seeds", type=int, default=1, help="runs per setting")
    add_run_options(parser, backend, "bimodal-posterior")
    args = parser.parse_args(argv)
    if args.smoke_test:
        args.scales, args.observed = args.scales[:1], args.observed[:1]
        args.num_steps = min(args.num_steps, 60)
        args.num_evaluations, args.num_draws = 20, 5000
    return args


def judge(fit: Fit, case: Case) -> Result:
    """Compare the end of a run with the posterior.

    :param fit: The end of the run.
    :param case: What is known of z.

    >>> z = np.linspace(-3, 3, 6001)
    >>> result = judge(Fit(z, [-1.2, -1.2]), Case(0.5, 1.0))
    >>> round(result.gap, 3), round(result.positive, 3), round(result.kl, 2)
    (-0.004, 0.5, 22.08)
    """
    estimate = mean_and_error(np.asarray(fit.estimates, np.float64))
    z = np.asarray(fit.draws, np.float64)
    exact = bimodal_posterior(*case)
    log_joint = stats.norm.logpdf(z) + stats.norm.logpdf(case.observed, z**2, case.scale)
    # From the spacings of the draws: the entropy of the guide as it is, whatever a critic says.
    kl = exact.log_evidence - log_joint.mean() - stats.differential_entropy(z)
    return Result(
        float(estimate.mean - exact.log_evidence),
        float(estimate.error),
        float(kl),
        float(np.abs(z).mean()),
        float((z > 0).mean()),
        float(np.abs(z).std() / _spread(exact)),
    )


def _spread(exact: BimodalPosterior) -> float:
    """Standard deviation of ``|z|``."""
    weights = exact.density / exact.density.sum()
    return float(np.sqrt(weights @ exact.grid**2 - exact.mean_abs**2))


def compare(backend: str, args: argparse.Namespace, fit: FitGuide) -> dict[str, Any]:
    """Train with every loss, case and seed; print and draw the posteriors that were found.

    :param backend: Name of the backend.
    :param args: Options from :func:`parse_args`.
    :param fit: Trains one guide.
    :return: For each loss and case, ``"adaptive, s = 0.5, x = 1"``, one :class:`Result` per seed.
    """
    seeds = range(args.seed, args.seed + args.num_seeds)
    cases = [Case(*case) for case in itertools.product(args.scales, args.observed)]
    results: dict[str, list[Result]] = {}
    draws: dict[str, FloatArray] = {}
    with tqdm(total=len(cases) * len(args.losses) * len(seeds)) as progress:
        for case, name, seed in itertools.product(cases, args.losses, seeds):
            progress.set_description(f"{name}, {case}")
            run = fit(name, case, seed)
            results.setdefault(f"{name}, {case}", []).append(judge(run, case))
            draws.setdefault(f"{name}, {case}", run.draws)
            progress.update()
    _print(args, cases, results)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    runs = {key: [run._asdict() for run in value] for key, value in results.items()}
    text = json.dumps({"seeds": list(seeds), "runs": runs}, indent=1)
    (output / "summary.json").write_text(text + "\n")
    _figure(backend, args, cases, draws).savefig(
        output / "bimodal_posterior.png", dpi=150, bbox_inches="tight"
    )
    print(f"\npicture: {output / 'bimodal_posterior.png'}")
    return results


def _print(
    args: argparse.Namespace, cases: Sequence[Case], results: dict[str, list[Result]]
) -> None:
    for case in cases:
        exact = bimodal_posterior(*case)
        print(
            f"\n{case}: log evidence {exact.log_evidence:.6f}, E|z| {exact.mean_abs:.4f}, "
            f"the best Normal guide misses by {bimodal_gaussian_gap(*case):.3f}"
        )
        print(f"{'':>15}{'KL':>8}{'E|z|':>8}{'spread':>8}{'both modes':>12}"
              "  gap of the estimate / P(z > 0), seed by seed")  # fmt: skip
        for name in args.losses:
            runs = results[f"{name}, {case}"]
            both = sum(LEAST_MASS <= run.positive <= 1 - LEAST_MASS for run in runs)
            kl, mean_abs, spread = (
                np.mean([getattr(run, field) for run in runs])
                for field in ("kl", "mean_abs", "spread")
            )
            print(
                f"{name:>15}{kl:>8.3f}{mean_abs:>8.4f}{spread:>8.3f}"
                f"{f'{both} of {len(runs)}':>12}  "
                + "  ".join(f"{run.gap:+.4f} / {run.positive:.3f}" for run in runs)
            )


def _figure(
    backend: str,
    args: argparse.Namespace,
    cases: Sequence[Case],
    draws: dict[str, FloatArray],
) -> Any:
    shape = len(cases), len(args.losses)
    figure = Figure((2.9 * shape[1] + 0.6, 2.6 * shape[0] + 0.4), layout="constrained")
    rows = figure.subplots(*shape, squeeze=False, sharex=True, sharey="row")
    width = 1.2 * np.sqrt(max(0.0, *args.observed)) + 1.0
    for row, case in zip(rows, cases, strict=True):
        exact = bimodal_posterior(*case)
        for ax, name in zip(row, args.losses, strict=True):
            colour = COLOURS[LOSSES.index(name)]
            ax.hist(draws[f"{name}, {case}"], np.linspace(-width, width, 101), density=True,
                    color=colour, alpha=0.45, label="guide")  # fmt: skip
            ax.plot(exact.grid, exact.density, color=INK, linewidth=1.2, label="exact")
            ax.spines[["top", "right"]].set_visible(False)
            ax.set(xlim=(-width, width), ylim=(0, 1.6 * exact.density.max()))
        row[0].set_ylabel(f"density, {case}")
        row[0].legend(frameon=False, fontsize=8, loc="upper center")
    for ax, name in zip(rows[0], args.losses, strict=True):
        ax.set_title(_TITLES[name], fontsize=11)
    for ax in rows[-1]:
        ax.set_xlabel("$z$")
    figure.suptitle(rf"$z$ given $x = z^2 +$ noise ({backend})")
    return figure
