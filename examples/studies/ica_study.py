# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What ``examples/*/ica.py`` share: options, data, EM baselines, the table and the pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from spread_analysis.plots import COLOURS
from spread_analysis.reference import mean_relative_error
from spread_core.validation import FloatArray
from studies.ica import laplace_ica, laplace_ica_em, spread_scale
from studies.options import add_run_options

_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
METHODS = ("EM", "spread EM, paper's s", "spread EM", "SpreadELBO")


class Problems(NamedTuple):
    """Independent problems of one size, which SVI trains side by side.

    :param data: Shape ``(problems, num_data, dim)``.
    :param mixing: True mixing matrices, shape ``(problems, dim, num_sources)``.
    :param start: First mixing matrices, of the same shape.
    :param output_noise: Standard deviations g, shape ``(problems,)``.
    """

    data: FloatArray
    mixing: FloatArray
    start: FloatArray
    output_noise: FloatArray


# fit(problems, description) -> estimates of shape (problems, dim, num_sources)
FitICA = Callable[[Problems, str], FloatArray]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``ica.py``.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-n", "--num-steps", type=int, help="of SpreadELBO")
    parser.add_argument("-lr", "--learning-rate", type=float, default=0.03)
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--hidden-dim", type=int, default=32)
    parser.add_argument("--num-em-steps", type=int)
    parser.add_argument("--noise-scale", type=float, default=0.3, help="of the spread noise")
    parser.add_argument("--output-noise", type=float, nargs="*", default=[0.02, 0.05, 0.2, 0.5])
    parser.add_argument("--num-data", type=int, nargs="*", help="sizes at output noise 0.2")
    parser.add_argument("--seed", type=int, default=0, help="of the first problem")
    parser.add_argument("--num-seeds", type=int, default=5, help="problems per setting")
    parser.add_argument("--paper", action="store_true", help="the paper's sizes: hours")
    add_run_options(parser, backend, "ica")
    args = parser.parse_args(argv)
    if args.num_data is None:
        args.num_data = [1000, 4000, 16000] if args.paper else [100, 300, 1000]
    args.num_steps = args.num_steps or (10000 if args.paper else 1500)
    args.num_em_steps = args.num_em_steps or (1000 if args.paper else 300)
    # (dim, sources, data) over the output noise, and (dim, sources) over the number of data.
    args.sizes = ((20, 10, 20000), (10, 5)) if args.paper else ((4, 2, 1000), (4, 2))
    if args.smoke_test:
        args.num_steps, args.num_em_steps = min(args.num_steps, 300), min(args.num_em_steps, 60)
        args.num_seeds, args.output_noise, args.num_data = min(args.num_seeds, 2), [0.05], []
        args.learning_rate *= 2
    return args


def make_problems(
    seeds: Sequence[int], dim: int, num_sources: int, num_data: int, output_noise: Sequence[float]
) -> Problems:
    """Draw one problem per output noise and seed, the seeds of one output noise side by side.

    The start is drawn like the truth and independently of it.
    """
    drawn = []
    for g in output_noise:
        for seed in seeds:
            rng = np.random.default_rng(seed)
            data, mixing = laplace_ica(rng, dim, num_sources, num_data, g)
            drawn.append((data, mixing, rng.uniform(-1.0, 1.0, mixing.shape), g))
    return Problems(*(np.stack(part) for part in zip(*drawn, strict=True)))


def _em(problem: Any, method: str, args: argparse.Namespace) -> FloatArray:
    data, _, start, g = problem
    spread = {METHODS[0]: None, METHODS[1]: spread_scale, METHODS[2]: args.noise_scale}[method]
    rng = np.random.default_rng(args.seed)
    path = laplace_ica_em(data, start, float(g), spread, args.num_em_steps, rng=rng)
    # Fresh noise keeps spread EM moving about its fixed point: average the last quarter.
    return path[-1] if spread is None else path[-(len(path) // 4) :].mean(0)


def compare(backend: str, args: argparse.Namespace, fit: FitICA) -> dict[str, Any]:
    """Run all methods over the output noise and the number of data; print and draw the errors.

    :param backend: Name of the backend.
    :param args: Options from :func:`parse_args`.
    :param fit: Trains by SpreadELBO.
    :return: For each curve, ``"output noise"`` and ``"data"``, a dict from method to errors
        of shape ``(settings, seeds, 2)``, by norm and by elements.
    """
    seeds = range(args.seed, args.seed + args.num_seeds)
    (dim, num_sources, num_data), small = args.sizes
    curves: dict[str, Any] = {}
    if args.output_noise:
        problems = make_problems(seeds, dim, num_sources, num_data, args.output_noise)
        curves["output noise"] = _errors(problems, args, fit, "g")
        title = f"A is {dim} x {num_sources}, N = {num_data}"
        _print("output noise", title, args.output_noise, curves["output noise"])
    if args.num_data:
        runs = []
        for size in args.num_data:
            if (small, size) == ((dim, num_sources), num_data) and 0.2 in args.output_noise:
                # The very problems of the first curve.
                row = args.output_noise.index(0.2)
                runs.append({m: e[row : row + 1] for m, e in curves["output noise"].items()})
            else:
                problems = make_problems(seeds, small[0], small[1], size, [0.2])
                runs.append(_errors(problems, args, fit, f"N={size}"))
        curves["data"] = {m: np.concatenate([run[m] for run in runs]) for m in runs[0]}
        title = f"A is {small[0]} x {small[1]}, g = 0.2"
        _print("data", title, args.num_data, curves["data"])
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    _figure(backend, args, curves).savefig(output / "ica.png", dpi=150)
    print(f"picture: {output / 'ica.png'}")
    return curves


def _errors(problems: Problems, args: argparse.Namespace, fit: FitICA, what: str) -> dict[str, Any]:
    singles = list(zip(*problems, strict=True))
    # Matrices this small gain nothing from threaded BLAS, and become ten times slower when other
    # programs run.
    with threadpool_limits(1, "blas"):
        estimates = {
            m: [_em(p, m, args) for p in tqdm(singles, f"{what} {m}")] for m in METHODS[:3]
        }
    estimates["start"] = list(problems.start)
    estimates[METHODS[3]] = list(fit(problems, f"{what} {METHODS[3]}"))
    return {
        m: np.array(
            [
                [mean_relative_error(e, a, kind) for kind in ("norm", "elements")]
                for e, a in zip(found, problems.mixing, strict=True)
            ]
        ).reshape(-1, args.num_seeds, 2)
        for m, found in estimates.items()
    }


def _standard_error(errors: FloatArray) -> FloatArray:
    count = errors.shape[-1]
    return errors.std(-1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(errors.shape[:-1])


def _print(name: str, title: str, settings: Sequence[float], curves: dict[str, Any]) -> None:
    print(f"\nrelative error |A^ - A| / |A| over {name} ({title}): mean +- standard error")
    print("(in brackets the mean over entries of |A^_ij - A_ij| / |A_ij|)")
    methods = ("start", *METHODS)
    print(f"{name:>12}" + "".join(f"{m:>24}" for m in methods))
    for i, setting in enumerate(settings):
        cells = []
        for m in methods:
            norm, elements = curves[m][i, :, 0], curves[m][i, :, 1]
            cell = f"{norm.mean():.3f} +- {_standard_error(norm):.3f} ({elements.mean():.2f})"
            cells.append(f"{cell:>24}")
        print(f"{setting:>12g}" + "".join(cells))


def _limits(curves: dict[str, Any]) -> tuple[float, float]:
    means = np.stack([curves[m][..., 0].mean(-1) for m in METHODS])
    errors = np.stack([_standard_error(curves[m][..., 0]) for m in METHODS])
    return float(0.6 * means.min()), float(1.3 * (means + errors).max())


def _figure(backend: str, args: argparse.Namespace, curves: dict[str, Any]) -> Any:
    width = 5.5 * len(curves) + 0.5
    figure = Figure((width, 4), layout="constrained")
    (dim, num_sources, num_data), small = args.sizes
    labels = {
        "output noise": ("output noise g", f"A is {dim} x {num_sources}, N = {num_data}"),
        "data": ("number of data N", f"A is {small[0]} x {small[1]}, g = 0.2"),
    }
    for ax, name in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        settings = args.output_noise if name == "output noise" else args.num_data
        for method, colour in zip(METHODS, COLOURS, strict=False):
            errors = curves[name][method][..., 0]
            mark = "--o" if method.startswith("EM") else "-o"
            ax.errorbar(
                settings, errors.mean(-1), _standard_error(errors), fmt=mark, color=colour,
                capsize=3, markersize=4, label=method,
            )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel=labels[name][0])
        ax.set_xticks(settings, [f"{setting:g}" for setting in settings])
        ax.set_xticks([], minor=True)
        ax.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        ax.set_yticks([], minor=True)
        # The ticks span more than the data need.
        ax.set_ylim(*_limits(curves[name]))
        ax.set(ylabel=r"relative error $|\hat A - A| / |A|$")
        ax.set_title(f"{backend}: {labels[name][1]}", fontsize=11)
        ax.legend(frameon=False, fontsize=8, loc="lower left")
    return figure
