# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What ``examples/*/hierarchical_implicit.py`` share: data, exact posterior, table, picture."""

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

from spread_analysis.evaluation import format_table
from spread_analysis.plots import COLOURS, INK
from spread_core.validation import FloatArray
from studies.options import add_run_options

#: Scale, asymmetry and tail weight of the g-and-k noise; its usual constant is 0.8.
B, G, K, C = 0.5, 1.0, 0.1, 0.8
#: Prior of mu, and of log tau: mean and standard deviation.
MU_PRIOR, LOG_TAU_PRIOR = (0.0, 3.0), (0.0, 0.7)
_TRUE_MU, _TRUE_TAU = 1.0, 0.8
_NUM_NODES = 801


class Exact(NamedTuple):
    """The posterior by quadrature.

    :param mu: Mean and standard deviation of mu.
    :param log_tau: Those of log tau.
    :param theta_mean: Means of theta, shape ``(num_groups,)``.
    :param theta_sd: Their standard deviations.
    :param mu_density: Nodes and density of mu.
    :param log_tau_density: Those of log tau.
    """

    mu: tuple[float, float]
    log_tau: tuple[float, float]
    theta_mean: FloatArray
    theta_sd: FloatArray
    mu_density: tuple[FloatArray, FloatArray]
    log_tau_density: tuple[FloatArray, FloatArray]


class Fit(NamedTuple):
    """Draws of the guide.

    :param mu: Shape ``(num_draws,)``.
    :param log_tau: Shape ``(num_draws,)``.
    :param theta: Shape ``(num_draws, num_groups)``.
    """

    mu: FloatArray
    log_tau: FloatArray
    theta: FloatArray


# fit(data, seed) -> draws of the guide
FitGuide = Callable[[FloatArray, int], Fit]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``hierarchical_implicit.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-n", "--num-steps", type=int, default=4000, help="of the guide")
    parser.add_argument("-k", "--critic-steps", type=int, default=2, help="per guide step")
    parser.add_argument("-lr", "--learning-rate", type=float, default=2e-3, help="the guide's")
    parser.add_argument("--critic-learning-rate", type=float, default=2e-3)
    parser.add_argument("--hidden-dim", type=int, default=64, help="of all nets")
    parser.add_argument("--num-particles", type=int, default=8, help="draws of mu and tau a step")
    parser.add_argument("--num-groups", type=int, default=200)
    parser.add_argument("--group-size", type=int, default=4, help="measurements in a group")
    parser.add_argument("--batch-size", type=int, default=200, help="groups in a step")
    parser.add_argument("--num-draws", type=int, default=4000, help="of the guide at the end")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--num-seeds", type=int, default=1, help="runs, each with its own data")
    add_run_options(parser, backend, "hierarchical-implicit")
    args = parser.parse_args(argv)
    if args.smoke_test:
        args.num_steps, args.num_draws = min(args.num_steps, 30), min(args.num_draws, 100)
        args.num_groups, args.batch_size = min(args.num_groups, 40), min(args.batch_size, 20)
    return args


def g_and_k(z: Any, tanh: Any = np.tanh) -> Any:
    """The quantile function of the g-and-k distribution at location zero, of a standard normal z.

    It is easy to sample and has no closed density (Rayner and MacGillivray 2002,
    https://doi.org/10.1023/A:1013120305780).

    :param z: Standard normal draws, an array of either backend.
    :param tanh: The backend's.
    """
    return B * (1 + C * tanh(G * z / 2)) * (1 + z**2) ** K * z


def simulate(num_groups: int, group_size: int, seed: int) -> FloatArray:
    """Measurements, shape ``(num_groups, group_size)``.

    :param num_groups: Number of groups.
    :param group_size: Measurements in each.
    :param seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    theta = _TRUE_MU + _TRUE_TAU * rng.standard_normal((num_groups, 1))
    return theta + g_and_k(rng.standard_normal((num_groups, group_size)))


def log_density(residual: ArrayLike) -> FloatArray:
    """Log density in nats of the g-and-k noise: its quantile function inverted on a fine grid.

    :param residual: Measurement minus location, any shape.
    """
    z = np.linspace(-9.0, 9.0, 20_001)
    quantile = g_and_k(z)
    log_slope = np.log(np.gradient(quantile, z))
    at = np.interp(np.asarray(residual), quantile, z)
    return np.asarray(stats.norm.logpdf(at) - np.interp(at, z, log_slope))


def exact_posterior(data: ArrayLike) -> Exact:
    """The posterior of mu, log tau and every theta, by quadrature on grids.

    :param data: From :func:`simulate`.
    """
    data = np.asarray(data, np.float64)
    centre = np.median(data)
    theta = np.linspace(data.min() - 3, data.max() + 3, _NUM_NODES)
    log_like = log_density(data[:, None, :] - theta[:, None]).sum(-1)  # groups x nodes
    peak = log_like.max(-1, keepdims=True)
    step = theta[1] - theta[0]
    mu, log_tau = np.linspace(centre - 2, centre + 2, 61), np.linspace(-2.5, 1.5, 61)
    for final in (False, True):
        prior = np.exp(stats.norm.logpdf(theta, mu[:, None, None], np.exp(log_tau)[:, None]))
        evidence = np.log(prior @ np.exp(log_like - peak).T * step) + peak[:, 0]
        weights = special.softmax(
            evidence.sum(-1)
            + stats.norm.logpdf(mu, *MU_PRIOR)[:, None]
            + stats.norm.logpdf(log_tau, *LOG_TAU_PRIOR)
        )
        mu_mass, log_tau_mass = weights.sum(1), weights.sum(0)
        mu_moments, log_tau_moments = _moments(mu, mu_mass), _moments(log_tau, log_tau_mass)
        if not final:  # once more where the posterior is
            mu, log_tau = (
                m + 6 * sd * np.linspace(-1, 1, 61) for m, sd in (mu_moments, log_tau_moments)
            )
    # p(theta_j | x) = E[p(theta_j | x_j, mu, tau)]
    ratio = weights[..., None] / np.exp(evidence - peak[:, 0])
    mixed = np.einsum("mtg,mtn->gn", ratio, prior, optimize=True)
    posterior = mixed * np.exp(log_like - peak) * step
    mean = posterior @ theta
    return Exact(
        mu_moments,
        log_tau_moments,
        mean,
        np.sqrt(posterior @ theta**2 - mean**2),
        (mu, mu_mass / (mu[1] - mu[0])),
        (log_tau, log_tau_mass / (log_tau[1] - log_tau[0])),
    )


def _moments(nodes: FloatArray, mass: FloatArray) -> tuple[float, float]:
    mean = float(mass @ nodes)
    return mean, float(np.sqrt(mass @ nodes**2 - mean**2))


def errors(fit: Fit, exact: Exact) -> dict[str, float]:
    """How far the guide is from the exact posterior.

    :param fit: Draws of the guide.
    :param exact: From :func:`exact_posterior`.
    :return: For mu and log tau the error of the mean in posterior standard deviations and the ratio
        of standard deviations; for theta the same, as root mean square and mean over the groups.
    """
    found: dict[str, float] = {}
    for name, draws, (mean, sd) in (
        ("mu", fit.mu, exact.mu),
        ("log tau", fit.log_tau, exact.log_tau),
    ):
        draws = np.asarray(draws, np.float64)
        found[f"{name}: mean"] = float((draws.mean() - mean) / sd)
        found[f"{name}: sd"] = float(draws.std() / sd)
    theta = np.asarray(fit.theta, np.float64)
    deviation = (theta.mean(0) - exact.theta_mean) / exact.theta_sd
    found["theta: mean"] = float(np.sqrt((deviation**2).mean()))
    found["theta: sd"] = float((theta.std(0) / exact.theta_sd).mean())
    return found


def compare(backend: str, args: argparse.Namespace, fit: FitGuide) -> list[dict[str, float]]:
    """Simulate, train from every seed, print the errors and draw the posteriors.

    :param backend: Name of the backend.
    :param args: Options from :func:`parse_args`.
    :param fit: Trains the guide.
    :return: :func:`errors` of every seed.
    """
    found: list[dict[str, float]] = []
    first: tuple[Fit, Exact] | None = None
    for seed in tqdm(range(args.seed, args.seed + args.num_seeds)):
        data = simulate(args.num_groups, args.group_size, seed)
        exact = exact_posterior(data)
        run = fit(data, seed)
        first = first or (run, exact)
        found.append(errors(run, exact))
    print("\nmean: error in standard deviations of the exact posterior; sd: ratio to the exact one")
    print(
        format_table(
            ["", *found[0]],
            [
                [f"{args.seed + i}", *(f"{v:.3f}" for v in run.values())]
                for i, run in enumerate(found)
            ],
        )
    )
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    assert first is not None
    _figure(backend, *first).savefig(
        output / "hierarchical_implicit.png", dpi=150, bbox_inches="tight"
    )
    print(f"\npicture: {output / 'hierarchical_implicit.png'}")
    return found


def _figure(backend: str, fit: Fit, exact: Exact) -> Any:
    figure = Figure((11.0, 3.3), layout="constrained")
    mu, log_tau, means, sds = figure.subplots(1, 4)
    guide, reference = COLOURS[0], INK
    for ax, draws, density, (mean, sd), title in (
        (mu, fit.mu, exact.mu_density, exact.mu, "mu"),
        (log_tau, fit.log_tau, exact.log_tau_density, exact.log_tau, "log tau"),
    ):
        ax.hist(draws, 60, density=True, color=guide, alpha=0.6, label="guide")
        ax.plot(*density, color=reference, label="exact")
        ax.set(title=title, xlim=(mean - 6 * sd, mean + 6 * sd), ylabel="density")
    mu.legend(frameon=False, fontsize=8, loc="upper left")
    for ax, ours, theirs, title in (
        (means, fit.theta.mean(0), exact.theta_mean, "mean of theta, by group"),
        (sds, fit.theta.std(0), exact.theta_sd, "sd of theta, by group"),
    ):
        ends = [min(ours.min(), theirs.min()), max(ours.max(), theirs.max())]
        ax.plot(ends, ends, color=reference, linewidth=1)
        ax.scatter(theirs, ours, s=5, alpha=0.5, color=guide, linewidths=0)
        ax.set(title=title, xlabel="exact", ylabel="guide")
    figure.suptitle(f"Measurements with g-and-k noise in groups ({backend})")
    return figure
