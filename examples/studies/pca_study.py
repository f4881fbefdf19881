# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What ``examples/*/delta_pca.py`` share: options, data, the runs, the table and the picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from spread_analysis.plots import COLOURS
from spread_analysis.reference import delta_pca_one_sided_optimum, delta_pca_optimum
from spread_core.validation import FloatArray
from studies.options import add_run_options

# Three components to find, and a residual that a decoder of rank three cannot make.
_SPECTRUM = np.array([4.0, 2.5, 1.5, 0.05, 0.04, 0.03, 0.02, 0.01])


class PCARun(NamedTuple):
    """A A' along one run."""

    steps: FloatArray
    products: FloatArray


# fit(x, start, scale, both_sides, seed) -> the run
FitPCA = Callable[[FloatArray, FloatArray, float, bool, int], PCARun]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``delta_pca.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-n", "--num-steps", type=int, default=3000)
    parser.add_argument(
        "-lr", "--learning-rate", type=float, default=0.03, help="at the first step"
    )
    parser.add_argument("--noise-scales", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--num-data", type=int, default=2000)
    parser.add_argument("--num-components", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--num-seeds", type=int, default=1, help="runs per noise scale")
    add_run_options(parser, backend, "delta-pca")
    args = parser.parse_args(argv)
    if args.smoke_test:
        args.num_steps, args.num_data = min(args.num_steps, 400), min(args.num_data, 500)
        args.noise_scales, args.learning_rate = args.noise_scales[-1:], 0.1
    return args


def draw_data(seed: int, num_data: int) -> tuple[FloatArray, FloatArray]:
    """Draw centred Gaussian data whose sample covariance is known exactly.

    :param seed: Seed of the basis and of the data.
    :param num_data: Number of data.
    :return: Data of shape ``(num_data, dim)`` and their covariance.
    """
    rng = np.random.default_rng(seed)
    dim = len(_SPECTRUM)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    white = rng.standard_normal((num_data, dim))
    white -= white.mean(0)
    white = np.linalg.solve(np.linalg.cholesky(white.T @ white / num_data), white.T).T
    return white * np.sqrt(_SPECTRUM) @ basis.T, (basis * _SPECTRUM) @ basis.T


def compare(backend: str, args: argparse.Namespace, fit: FitPCA) -> FloatArray:
    """Run every noise scale and seed with noise on both sides and on one, and print the errors.

    :param backend: Name of the backend.
    :param args: Options from :func:`parse_args`.
    :param fit: Trains one model.
    :return: Final relative errors, shape ``(2, num_scales, num_seeds)``: first of noise on both
        sides against the clean covariance, then of noise on one side against the same.
    """
    errors = np.zeros((2, len(args.noise_scales), args.num_seeds))
    to_biased, curves, final = errors.copy(), {}, {}
    for j in range(args.num_seeds):
        seed = args.seed + j
        x, covariance = draw_data(seed, args.num_data)
        clean = delta_pca_optimum(covariance, args.num_components)
        start = 0.5 * np.random.default_rng([seed, 1]).standard_normal(
            (len(covariance), args.num_components)
        )
        for i, scale in enumerate(args.noise_scales):
            biased = delta_pca_one_sided_optimum(covariance, args.num_components, scale)
            for k, both in enumerate((True, False)):
                run = fit(x, start, scale, both, seed)
                distance = np.linalg.norm(run.products - clean, axis=(1, 2))
                curve = distance / np.linalg.norm(clean)
                errors[k, i, j] = curve[-1]
                gap = np.linalg.norm(run.products[-1] - biased)
                to_biased[k, i, j] = gap / np.linalg.norm(biased)
                if j == 0:
                    curves[scale, both] = run.steps, curve
                    final[scale, both] = np.linalg.eigvalsh(run.products[-1])[::-1]
    _print(args, errors, to_biased)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    figure = _figure(backend, args, curves, final)
    figure.savefig(output / "delta_pca.png", dpi=150)
    print(f"picture: {output / 'delta_pca.png'}")
    return errors


def _print(args: argparse.Namespace, errors: FloatArray, to_biased: FloatArray) -> None:
    print("relative Frobenius error of A A', mean over seeds (largest)")
    print(f"{'s':>6}{'both sides: to clean':>24}{'one side: to clean':>24}{'to L - s^2':>20}")
    for i, scale in enumerate(args.noise_scales):
        row = (errors[0, i], errors[1, i], to_biased[1, i])
        cells = [f"{e.mean():.4f} ({e.max():.4f})" for e in row]
        print(f"{scale:>6}{cells[0]:>24}{cells[1]:>24}{cells[2]:>20}")


def _figure(backend: str, args: argparse.Namespace, curves: dict, final: dict) -> Any:
    figure = Figure((11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    for scale, colour in zip(args.noise_scales, COLOURS, strict=False):
        for both, style in ((True, "-"), (False, ":")):
            steps, curve = curves[scale, both]
            label = f"s = {scale:g}, {'both sides' if both else 'model side only'}"
            left.plot(steps, curve, style, color=colour, label=label)
    left.axhline(0.01, color="0.6", linewidth=0.8)
    left.text(0, 0.0105, "1 %", color="0.4", fontsize=8)
    left.set(yscale="log", xlabel="step", ylabel=r"$\|AA^\top - U_kL_kU_k^\top\|_F$, relative")
    left.set_title(f"Delta-PCA with SpreadELBO ({backend})", fontsize=11)
    left.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))

    k, count = args.num_components, len(args.noise_scales)
    index = np.arange(k)
    for i, (scale, colour) in enumerate(zip(args.noise_scales, COLOURS, strict=False)):
        offset = (i - (count - 1) / 2) * 0.2
        right.plot(
            index + offset, final[scale, True][:k], "o", color=colour, label=f"s = {scale:g}"
        )
        right.plot(index + offset, final[scale, False][:k], "x", color=colour)
    right.hlines(_SPECTRUM[:k], index - 0.4, index + 0.4, color="0.6", linewidth=1, zorder=0)
    right.set(xticks=index, xticklabels=[f"$l_{i + 1}$" for i in index], ylim=(0, None))
    right.set(ylabel=r"eigenvalue of $AA^\top$", xlabel="lines: clean covariance")
    right.set_title("o both sides, x model side only", fontsize=11)
    right.legend(frameon=False, fontsize=8, loc="upper right")
    return figure
