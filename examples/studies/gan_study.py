# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
What ``gan.py`` and ``conditional.py`` share in both backends.

A backend contributes one function that trains one generator with one seed and returns images as
arrays; options, judges, tables, pictures and files are here, so that both backends report alike.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spread_analysis.datasets import Dataset
from spread_analysis.evaluation import SampleJudge, format_table, mean_and_error
from spread_analysis.metrics import median_heuristic
from spread_analysis.plots import plot_sample_grid
from studies.labels import NUM_STACKED, LabelJudge, LabelReport, StackedJudge, stack
from studies.options import add_run_options, read_dataset

#: Losses for training a generator, in the order of the table.
LOSSES = {
    "js": "JS .5",
    "js-ns": "JS .5, non-saturating",
    "js-no-r1": "JS .5, no R1",
    "js-ns-no-r1": "JS .5, non-saturating, no R1",
    "js-adaptive": "JS .5, adaptive noise",
    "js-0.1": "JS .1",
    "js-0.9": "JS .9",
    "kl": "KL[P|Q]",
    "reverse-kl": "KL[Q|P]",
    "wasserstein": "Wasserstein critic",
    "hinge": "hinge critic",
    "relativistic": "relativistic critic",
    "mmd": "MMD",
    "energy": "energy distance",
    "sliced": "sliced Wasserstein",
}
#: A run keeps all classes if each has this part of an equal share of its samples,
SMALLEST_PART = 0.3
#: and if the label classifier is this sure of them, in the mean.
LEAST_CONFIDENCE = 0.8
RESULTS_FILE = "results.json"
TABLE_FILE = "table.txt"
_DATASETS = ("digits", "mnist", "fashion-mnist")
_SMOKE_IMAGES = 400
_CHUNK = 100
#: Images in a row of the picture.
SHOWN = 12


@dataclass(frozen=True)
class Preset:
    """Settings for a data set; the same for all losses."""

    num_steps: int
    hidden_dim: int
    batch_size: int = 128


PRESETS = {
    "digits": Preset(5000, 128),
    "mnist": Preset(3000, 512),
    "fashion-mnist": Preset(3000, 512),
}
# Enough to go through every line, in seconds.
_SMOKE = Preset(6, 16, 64)


class Fit(NamedTuple):
    """
    One trained generator.

    :param samples: its images at draws of the prior, shape (N, image size).
    :param seconds: wall time of training.
    """

    samples: npt.NDArray[Any]
    seconds: float


# fit(loss, seed, dataset, num_samples) -> one trained generator
FitModel = Callable[[str, int, Dataset, int], Fit]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None, *, program: str = "gan"
) -> argparse.Namespace:
    """
    The options of ``gan.py`` and ``conditional.py``; some depend on the data set if left out.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: what the program does.
    :param argv: the arguments; None takes those of the process.
    :param program: ``"gan"`` or ``"conditional"``.
    """
    parser = argparse.ArgumentParser(description=description)
    if program == "gan":
        parser.add_argument("--losses", nargs="+", choices=tuple(LOSSES), default=list(LOSSES))
        parser.add_argument("--stacked", action="store_true", help="an image in each of three "
                            "colours: a thousand classes")  # fmt: skip
    parser.add_argument("--gamma", type=float, default=2.0, help="weight of R1")
    parser.add_argument("--noise-scale", type=float, default=0.3, help="of both sides' noise")
    parser.add_argument("--dataset", default="digits", choices=_DATASETS)
    parser.add_argument("--data-dir", help="folder of the data set's files (digits need none)")
    parser.add_argument("--limit", type=int, help="use at most this many images")
    parser.add_argument("-n", "--num-steps", type=int)
    parser.add_argument("-lr", "--learning-rate", type=float, default=5e-4, help="both players'")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--latent-dim", type=int, default=64)
    parser.add_argument("--hidden-dim", type=int, help="width of the two hidden layers of each net")
    parser.add_argument("--seed", default=0, type=int, help="of the first run")
    parser.add_argument("--num-seeds", default=3, type=int, help="runs per loss")
    add_run_options(parser, backend, program, compiles=program == "gan")
    args = parser.parse_args(argv)
    preset = _SMOKE if args.smoke_test else PRESETS[args.dataset]
    for option, value in asdict(preset).items():
        if getattr(args, option) is None:
            setattr(args, option, value)
    if args.smoke_test:
        args.num_seeds, args.limit = min(args.num_seeds, 2), args.limit or _SMOKE_IMAGES
    for option in ("num_steps", "batch_size", "latent_dim", "hidden_dim", "num_seeds"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1")
    return args


def batches(
    num_images: int, batch_size: int, num_steps: int, seed: int
) -> Iterator[npt.NDArray[Any]]:
    """
    Indices of mini-batches, shape (at most 100, batch size) at a time, drawn with replacement.

        >>> [chunk.shape for chunk in batches(10, 4, 150, seed=0)]
        [(100, 4), (50, 4)]

    :param num_images: number of images.
    :param batch_size: images per batch.
    :param num_steps: number of batches in all.
    :param seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, num_steps, _CHUNK):
        yield rng.integers(num_images, size=(min(_CHUNK, num_steps - start), batch_size))


def as_signed(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """
    Training data of the generators: pixels from -1 to 1, the range of tanh.

    :param images: pixels from 0 to 1, shape (N,) + image shape.
    :return: shape (N, image size).
    """
    return np.asarray(2 * _flat(images) - 1, np.float32)


def as_images(signed: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """
    Back from :func:`as_signed`: pixels from 0 to 1.

    :param signed: pixels from -1 to 1, shape (N, image size).
    """
    return np.asarray((1 + _flat(signed)) / 2, np.float32)


def bandwidths(dataset: Dataset) -> tuple[float, ...]:
    """
    Bandwidths for a mixture of Gaussian kernels, up to the median distance of signed images.

    :param dataset: the data.
    """
    train = as_signed(dataset.train_images)
    half = len(train) // 2
    median = median_heuristic(train[:half], train[half:])
    return tuple(factor * median for factor in (0.125, 0.25, 0.5, 1.0))


def compare(backend: str, args: argparse.Namespace, fit: FitModel) -> dict[str, Any]:
    """
    Train the generator by every loss and with every seed, judge its samples, write table, picture.

    :param backend: name of the backend.
    :param args: from :func:`parse_args`.
    :param fit: trains one generator.
    :return: what was written as JSON.
    :raises SystemExit: if the data cannot be read, saying which file is missing or corrupt.
    """
    dataset, output = prepare(args)
    grey_judge = LabelJudge(dataset)
    label_judge: LabelJudge | StackedJudge = grey_judge
    num_labelled = 0
    if args.stacked:
        label_judge = StackedJudge(dataset, grey_judge)
        num_labelled = args.limit if args.smoke_test else NUM_STACKED
        dataset = stack(dataset, num_labelled)
    judge = SampleJudge(dataset)
    num_samples = max(judge.num_samples, num_labelled)
    real = label_judge(dataset.test_images)
    results: dict[str, Any] = {
        "backend": backend,
        "options": vars(args),
        "num_train": len(dataset.train_images),
        "num_held_out": len(dataset.test_images),
        "num_samples": num_samples,
        "features": judge.features.description,
        "accuracy": label_judge.accuracy,
        "real": {**_report(real), "frechet": judge.real().frechet},
        "losses": {},
    }
    shown = [dataset.test_images[:SHOWN]]
    for name in args.losses:
        runs: list[dict[str, Any]] = []
        results["losses"][name] = runs
        for seed in range(args.seed, args.seed + args.num_seeds):
            samples, seconds = fit(name, seed, dataset, num_samples)
            if not runs:
                shown.append(samples[:SHOWN].reshape(-1, *dataset.image_shape))
            quality = _judge(samples, judge, label_judge)
            runs.append({"seed": seed, **quality, "seconds": seconds})
            # After every run: a long comparison may be interrupted.
            (output / RESULTS_FILE).write_text(json.dumps(results, indent=1))
    rows = ["held out", *(LOSSES[name] for name in args.losses)]
    picture(f"{backend}, {args.dataset}", np.concatenate(shown), rows, output / "samples.png")
    finish(output, describe(results) + "\n\n" + gan_table([results]))
    return results


def _judge(
    samples: npt.NDArray[Any], judge: SampleJudge, label_judge: LabelJudge | StackedJudge
) -> dict[str, Any]:
    if not np.isfinite(samples).all():
        names = ("found", "smallest", "confidence", "frechet")
        return {"shares": None, **dict.fromkeys(names, np.nan)}
    return {**_report(label_judge(samples)), "frechet": judge(samples).frechet}


def _report(report: LabelReport) -> dict[str, Any]:
    shares = [float(share) for share in report.shares]
    return {
        "shares": shares,
        "found": sum(share > 0 for share in shares),
        "smallest": min(shares),
        "confidence": report.confidence,
    }


def describe(results: dict[str, Any]) -> str:
    """
    Describe the comparison in words.

    :param results: from :func:`compare`.
    """
    options = results["options"]
    stacked = ", in each colour of a stack" if options["stacked"] else ""
    text = f"""
        {options["dataset"]}: {results["num_train"]} training images; {options["num_steps"]} steps
        of {options["batch_size"]} images, nets of two hidden layers of {options["hidden_dim"]}.
        Pixels from -1 to 1. Adversarial divergences: noise {options["noise_scale"]}, R1 with gamma
        {options["gamma"]:g} at one step in four. {results["num_samples"]} samples per run against
        {results["num_held_out"]} held-out images: Fréchet distance in {results["features"]};
        classes found, the smallest and confidence by a label classifier that is right on
        {100 * results["accuracy"]:.1f} % of held-out images{stacked}. "All classes": runs with at
        least {100 * _least(results):g} % of each class and a mean confidence of at least
        {LEAST_CONFIDENCE:g}. Mean ± standard error of {options["num_seeds"]} seed(s).
    """
    return textwrap.fill(" ".join(text.split()), 100)


def gan_table(all_results: Sequence[dict[str, Any]]) -> str:
    """
    One table of the losses of all backends, and of held-out images.

    :param all_results: results of :func:`compare`, of the same data set.
    """
    rows = []
    for results in all_results:
        for name, runs in results["losses"].items():
            kept = sum(
                run["smallest"] >= _least(results) and run["confidence"] >= LEAST_CONFIDENCE
                for run in runs
            )
            seconds = f"{mean_and_error(run['seconds'] for run in runs).mean:.0f}"
            label = f"{results['backend']} {LOSSES[name]}"
            rows.append([label, *_cells(runs), f"{kept} of {len(runs)}", seconds])
    rows.append(["real images", *_cells([all_results[0]["real"]]), "", ""])
    header = (
        "loss",
        "Fréchet",
        "classes found",
        "smallest, %",
        "confidence",
        "all classes",
        "seconds",
    )
    return format_table(header, rows)


def _least(results: dict[str, Any]) -> float:
    return SMALLEST_PART / len(results["real"]["shares"])


def _cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    columns = (("frechet", 1, 2), ("found", 1, 0), ("smallest", 100, 1), ("confidence", 1, 2))
    return [
        mean_and_error(scale * run[key] for run in runs).format(digits)
        for key, scale, digits in columns
    ]


def prepare(args: argparse.Namespace) -> tuple[Dataset, Path]:
    """
    The data set and the output folder that the options name.

    :param args: from :func:`parse_args`.
    :raises SystemExit: if the data cannot be read, saying which file is missing or corrupt.
    """
    dataset = read_dataset(args)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    return dataset, output


def finish(output: Path, report: str) -> None:
    """
    Print the report and write it next to the picture.

    :param output: the folder.
    :param report: the text.
    """
    (output / TABLE_FILE).write_text(report + "\n")
    print("\n" + report)
    print(f"\nPicture, table and {RESULTS_FILE} are in {output}.")


def picture(title: str, images: npt.NDArray[Any], rows: Sequence[str], path: Path) -> None:
    """
    Draw rows of images.

    :param title: above them.
    :param images: shape (N, height, width), equally many for each row.
    :param rows: a name for every row.
    :param path: the file to write.
    """
    images = np.nan_to_num(np.asarray(images, np.float64))
    axes: Any = plot_sample_grid(images, num_columns=len(images) // len(rows), title=title)
    # A tile and its gap are the same number of pixels in every row.
    height = axes.get_images()[0].get_array().shape[0] / len(rows)
    axes.set_yticks([height * (row + 0.5) for row in range(len(rows))], rows, fontsize=8)
    axes.tick_params(length=0)
    axes.figure.savefig(path, dpi=150, bbox_inches="tight")


def _flat(images: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(images, np.float32)
    return array.reshape(len(array), -1)
