# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What ``examples/*/eight_schools.py`` share: data, options, exact moments, table and pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spread_analysis.arviz_export import to_arviz
from spread_analysis.evaluation import format_table, mean_and_error
from spread_analysis.plots import COLOURS, INK
from spread_analysis.reference import EightSchoolsPosterior, eight_schools_posterior
from spread_core.validation import FloatArray
from studies.options import add_run_options

#: Prior standard deviations of mu and of tau, which may be negative.
MU_SCALE, TAU_SCALE = 5.0, 10.0
#: Relative error of a moment from which a run counts as failed.
TOLERANCE = 0.05

METHODS = {
    "contrast": "implicit mu and tau, PriorContrastELBO",
    "contrast-all": "AutoImplicit, PriorContrastELBO",
    "semi-implicit": "implicit mu and tau, SemiImplicitELBO",
    "normal": "AutoMultivariateNormal, Trace_ELBO",
    "nuts": "NUTS",
}


class Fit(NamedTuple):
    """
    Result of one method.

    :param samples: Dict with draws of mu and tau, shape ``(num_samples,)``, and of theta,
        ``(num_samples, 8)``.
    :param estimate: Its (adversarial) ELBO estimate in nats, or NaN.
    """

    samples: dict[str, FloatArray]
    estimate: float


# fit(method, seed) -> what it found
FitModel = Callable[[str, int], Fit]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``eight_schools.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("-n", "--num-steps", type=int, default=3000, help="of the guide")
    parser.add_argument("-k", "--critic-steps", type=int, default=4, help="per guide step")
    parser.add_argument("-lr", "--learning-rate", type=float, default=1e-3, help="the guide's")
    parser.add_argument("--critic-learning-rate", type=float, default=2e-3)
    parser.add_argument("--hidden-dim", type=int, default=128, help="of the critic")
    parser.add_argument("--num-particles", type=int, default=32)
    parser.add_argument("--num-mixture", type=int, default=50, help="K of the semi-implicit bound")
    parser.add_argument("--num-samples", type=int, default=20_000, help="draws of each guide")
    parser.add_argument("--num-draws", type=int, default=2000, help="of NUTS")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--num-seeds", type=int, default=1, help="runs per method")
    add_run_options(parser, backend, "eight-schools")
    args = parser.parse_args(argv)
    if args.smoke_test:
        args.num_steps, args.critic_steps = min(args.num_steps, 100), 1
        args.num_samples, args.num_draws = min(args.num_samples, 500), min(args.num_draws, 50)
        args.num_mixture = min(args.num_mixture, 5)
    return args


def exact() -> EightSchoolsPosterior:
    """The posterior by quadrature."""
    return eight_schools_posterior("normal", TAU_SCALE, MU_SCALE)


def errors(fit: Fit) -> dict[str, float]:
    """Relative errors of mean and standard deviation of mu and of ``|tau|``, and P(tau > 0).

    :param fit: What a method found.
    """
    reference = exact()
    mu, tau = (np.asarray(fit.samples[name], np.float64) for name in ("mu", "tau"))
    return {
        "mean mu": float(mu.mean() / reference.mu_mean - 1),
        "sd mu": float(mu.std() / reference.mu_sd - 1),
        "mean |tau|": float(np.abs(tau).mean() / reference.abs_tau_mean - 1),
        "sd |tau|": float(np.abs(tau).std() / reference.abs_tau_sd - 1),
        "P(tau > 0)": float((tau > 0).mean()),
        "gap": float(fit.estimate - reference.log_evidence),
    }


def compare(backend: str, args: argparse.Namespace, fit: FitModel) -> dict[str, Any]:
    """Run all methods from all seeds; print the errors of their moments and draw the posteriors.

    :param backend: Name of the backend.
    :param args: Options from :func:`parse_args`.
    :param fit: Runs one method.
    :return: For each method a list of :func:`errors`, one for each seed.
    """
    found: dict[str, list[dict[str, float]]] = {}
    first: dict[str, Fit] = {}
    for method in args.methods:
        for seed in range(args.seed, args.seed + args.num_seeds):
            run = fit(method, seed)
            first.setdefault(method, run)
            found.setdefault(method, []).append(errors(run))
    header = ["", *next(iter(found.values()))[0], f"within {TOLERANCE:.0%}"]
    rows = []
    for method, runs in found.items():
        cells = []
        for name in runs[0]:
            values = mean_and_error(run[name] for run in runs)
            percent = name not in ("P(tau > 0)", "gap")
            cells.append(f"{100 * values.mean:+.1f} %" if percent else f"{values.mean:.2f}")
        kept = sum(_is_right(run) for run in runs)
        rows.append([METHODS[method], *cells, f"{kept} of {len(runs)}"])
    print("relative errors of the posterior's moments against quadrature; gap is the reported")
    print("ELBO estimate less log p(y), in nats\n")
    print(format_table(header, rows))

    import arviz as az  # takes seconds

    for method, run in first.items():
        print(f"\n{METHODS[method]}")
        print(az.summary(to_arviz(run.samples), var_names=["mu", "theta"], kind="stats"))
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    _figure(backend, first).savefig(output / "eight_schools.png", dpi=150, bbox_inches="tight")
    print(f"\npicture: {output / 'eight_schools.png'}")
    return found


def _is_right(run: dict[str, float]) -> bool:
    moments = ("mean mu", "sd mu", "mean |tau|", "sd |tau|")
    return all(abs(run[m]) <= TOLERANCE for m in moments) and 0.45 <= run["P(tau > 0)"] <= 0.55


def _figure(backend: str, fits: dict[str, Fit]) -> Any:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, 1 + len(fits), figsize=(4.0 + 2.6 * len(fits), 3.2), layout="constrained"
    )
    reference = exact()
    density, *pairs = axes
    inside = np.abs(reference.tau_grid) < 30
    density.plot(
        reference.tau_grid[inside], reference.tau_density[inside], color=INK, label="exact"
    )
    bins = np.linspace(-30, 30, 91)
    for (method, run), colour in zip(fits.items(), COLOURS, strict=False):
        tau = np.asarray(run.samples["tau"])
        density.hist(tau, bins, density=True, histtype="step", color=colour, label=method)
    for (method, run), colour, ax in zip(fits.items(), COLOURS, pairs, strict=False):
        mu, tau, theta = (np.asarray(run.samples[n])[:2000] for n in ("mu", "tau", "theta"))
        ax.scatter((theta[:, 0] - mu) / tau, tau, s=2, alpha=0.3, color=colour, linewidths=0)
        ax.set(title=METHODS[method].replace(", ", "\n"), xlabel="eta of school A", xlim=(-4, 4))
        ax.set_ylim(-30, 30)
        ax.title.set_fontsize("small")
    density.set(title=f"eight schools ({backend})", xlabel="tau", ylabel="posterior density")
    density.legend(fontsize="small", frameon=False, loc="upper left")
    pairs[0].set_ylabel("tau")
    return figure
