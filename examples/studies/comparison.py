# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""
The comparison that ``delta_vae.py`` makes in both backends: a spread model and a plain VAE.

A backend contributes one function that trains one model with one seed and returns arrays; options,
measurements, table, pictures and the file of results are here, so that both backends report alike.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spread_analysis.datasets import DATASETS, Dataset
from spread_analysis.evaluation import (
    SampleJudge,
    SampleQuality,
    format_table,
    mean_and_error,
)
from spread_analysis.plots import plot_loss_curve, plot_reconstructions, plot_sample_grid
from spread_core.optional import import_extra
from studies.options import add_run_options, read_dataset, reserved_share

MODELS = ("vae", "spread")
RESULTS_FILE = "results.json"
TABLE_FILE = "table.txt"
_HEADER = (
    "model",
    "Trace_ELBO loss",
    "SpreadELBO loss",
    "Fréchet",
    "MMD² x 1000",
    "precision",
    "recall",
    "seconds",
)


@dataclass(frozen=True)
class Preset:
    """Settings for a data set; both models use the same."""

    latent_dim: int
    hidden_dim: int
    num_epochs: int
    learning_rate: float
    batch_size: int
    noise_scale: float
    # Nets as small as those of the digits gain nothing from a second thread.
    num_threads: int = 2


PRESETS = {
    "digits": Preset(8, 256, 400, 3e-3, 128, 0.2, num_threads=1),
    "mnist": Preset(10, 256, 30, 2e-3, 100, 0.3),
    "fashion-mnist": Preset(10, 256, 30, 2e-3, 100, 0.3),
    "celeba": Preset(64, 512, 20, 5e-4, 100, 0.5),
}
# Enough to go through every line, in seconds.
_SMOKE = Preset(2, 16, 2, 1e-3, 64, 0.3, num_threads=1)
_SMOKE_IMAGES = 400
# Photographs are 12,288 numbers each: this many take 1 GB.
_CELEBA_IMAGES = 20_000


@dataclass(frozen=True)
class Fit:
    """
    One trained model, as arrays.

    :param losses: minus the bound of the model's own training, nats per image, one per epoch.
    :param stock_loss: ``Trace_ELBO`` loss on the held-out images, nats per image.
    :param spread_loss: ``SpreadELBO`` loss on them; None of a model that is not spread.
    :param samples: images decoded from draws of the prior, shape (N, image size).
    :param noisy_samples: the same images with the noise of the likelihood; None if it has none.
    :param inputs: what the guide was shown of the first held-out images.
    :param reconstructions: what the decoder made of them.
    :param seconds: wall time of training.
    """

    losses: Sequence[float]
    stock_loss: float
    spread_loss: float | None
    samples: npt.NDArray[Any]
    noisy_samples: npt.NDArray[Any] | None
    inputs: npt.NDArray[Any]
    reconstructions: npt.NDArray[Any]
    seconds: float


FitModel = Callable[[str, int, Dataset, int], Fit]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """
    The options of ``delta_vae.py``; what is left out is chosen for the data set.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: what the program does.
    :param argv: the arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dataset", default="digits", choices=DATASETS)
    parser.add_argument("--data-dir", help="folder of the data set's files (digits need none)")
    parser.add_argument("--limit", type=int, help="use at most this many images")
    parser.add_argument("--noise-scale", type=float, help="of the Gaussian noise")
    parser.add_argument(
        "--noise",
        default="fixed",
        choices=("fixed", "learned", "learned-mean"),
        help="learned: a variance for each pixel, half of which stays, of constant sum; "
        "learned-mean: round x + g(x), g a net of slope below 0.9",
    )
    parser.add_argument("-n", "--num-epochs", type=int)
    parser.add_argument("-lr", "--learning-rate", type=float)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--latent-dim", type=int)
    parser.add_argument("--hidden-dim", type=int, help="width of the two hidden layers of each net")
    parser.add_argument("--seed", default=0, type=int, help="of the first run")
    parser.add_argument("--num-seeds", default=3, type=int, help="runs per model")
    add_run_options(parser, backend, "delta-vae", num_threads=None, compiles=True)
    args = parser.parse_args(argv)
    preset = _SMOKE if args.smoke_test else PRESETS[args.dataset]
    for option, value in asdict(preset).items():
        if getattr(args, option, value) is None:
            setattr(args, option, value)
    if args.smoke_test:
        args.num_seeds, args.limit = min(args.num_seeds, 2), args.limit or _SMOKE_IMAGES
    if args.dataset == "celeba":
        args.limit = args.limit or _CELEBA_IMAGES
    for option in ("num_epochs", "batch_size", "latent_dim", "hidden_dim", "num_seeds"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1")
    return args


def compare(backend: str, args: argparse.Namespace, fit: FitModel) -> dict[str, Any]:
    """
    Train both models with every seed, measure them, print the table and write all to the output.

    :param backend: name of the backend.
    :param args: from :func:`parse_args`.
    :param fit: trains a model: ``fit(name, seed, dataset, num_samples)``, name one of ``MODELS``.
    :return: what was written as JSON.
    :raises SystemExit: if the data cannot be read, saying which file is missing or corrupt.
    """
    dataset = read_dataset(args, reserved=reserved_share(args.dataset))
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    judge = SampleJudge(dataset)
    fits: dict[str, list[Fit]] = {name: [] for name in MODELS}
    for run in range(args.num_seeds):
        for name in MODELS:
            fits[name].append(fit(name, args.seed + run, dataset, judge.num_samples))
    results = _results(backend, args, judge, fits)
    (output / RESULTS_FILE).write_text(json.dumps(results, indent=2))
    report = describe(results) + "\n\n" + comparison_table([results])
    (output / TABLE_FILE).write_text(report + "\n")
    print("\n" + report)
    draw(output, backend, dataset, fits)
    print(f"\nPictures, table and {RESULTS_FILE} are in {output}.")
    return results


def _results(
    backend: str, args: argparse.Namespace, judge: SampleJudge, fits: Mapping[str, list[Fit]]
) -> dict[str, Any]:
    models: dict[str, dict[str, Any]] = {}
    for name, runs in fits.items():
        models[name] = {
            "stock_loss": [fit.stock_loss for fit in runs],
            "spread_loss": [fit.spread_loss for fit in runs],
            "seconds": [fit.seconds for fit in runs],
            **_qualities(judge, [fit.samples for fit in runs]),
        }
        noisy = [fit.noisy_samples for fit in runs if fit.noisy_samples is not None]
        if noisy:
            models[name]["noisy"] = _qualities(judge, noisy)
    return {
        "backend": backend,
        "options": vars(args),
        "num_train": len(judge.dataset.train_images),
        "num_held_out": judge.num_held_out,
        "num_samples": judge.num_samples,
        "features": f"{judge.features.description}, learned from {judge.learned_from}",
        "real_images": judge.real_images,
        "real": judge.real()._asdict(),
        "models": models,
    }


def _qualities(judge: SampleJudge, samples: Sequence[npt.ArrayLike]) -> dict[str, list[float]]:
    rows = [judge(images)._asdict() for images in samples]
    return {metric: [row[metric] for row in rows] for metric in SampleQuality._fields}


def load_results(folder: str | Path) -> dict[str, Any]:
    """
    Results that :func:`compare` has written.

    :param folder: its output.
    """
    results: dict[str, Any] = json.loads((Path(folder) / RESULTS_FILE).read_text())
    return results


def describe(results: Mapping[str, Any]) -> str:
    """
    Describe the comparison in words.

    :param results: from :func:`compare`.
    """
    options = results["options"]
    noise = options.get("noise", "fixed").replace("-", " ")
    text = f"""
        {options["dataset"]}: {results["num_train"]} training images; both models have the same
        nets, {options["latent_dim"]} latents, {options["num_epochs"]} epochs. Spread noise
        {options["noise_scale"]}, {noise}. {results["num_samples"]} decoder means at draws of the
        prior, against {results["num_held_out"]} held-out images. Fréchet distance, precision and
        recall in {results["features"]}. Real images: {results["real_images"]}. Mean ± standard
        error of {options["num_seeds"]} seed(s). Losses are minus the bound on held-out images, in
        nats per image, comparable within a column only.
    """
    return textwrap.fill(" ".join(text.split()), 100)


def comparison_table(all_results: Sequence[Mapping[str, Any]]) -> str:
    """
    One table of the models of all backends, and of real images as the best that can be reached.

    :param all_results: results of :func:`compare`, of the same data set.
    """
    names = {"vae": "plain VAE", "spread": "spread delta-VAE"}
    rows = []
    for results in all_results:
        for name in MODELS:
            model, label = results["models"][name], f"{results['backend']} {names[name]}"
            rows.append([label, *_cells(model)])
            if "noisy" in model:
                rows.append([f"{label} + its noise", "", "", *_quality_cells(model["noisy"]), ""])
    real = {metric: [value] for metric, value in all_results[0]["real"].items()}
    rows.append(["real images", "", "", *_quality_cells(real), ""])
    return format_table(_HEADER, rows)


def _cells(model: Mapping[str, list[float]]) -> list[str]:
    losses = []
    for key in ("stock_loss", "spread_loss"):
        values = model[key]
        if None in values:
            losses.append("-")
        else:
            losses.append("inf" if np.isposinf(values).all() else mean_and_error(values).format(2))
    seconds = f"{mean_and_error(model['seconds']).mean:.1f}"
    return [*losses, *_quality_cells(model), seconds]


def _quality_cells(model: Mapping[str, list[float]]) -> list[str]:
    scaled = {**model, "mmd2": [1000 * value for value in model["mmd2"]]}
    return [mean_and_error(scaled[metric]).format(2) for metric in SampleQuality._fields]


def draw(
    output: Path, backend: str, dataset: Dataset, fits: Mapping[str, Sequence[Fit]]
) -> list[Path]:
    """
    Pictures of the first seed: samples, one model each and all side by side, reconstructions, and
    the losses of all seeds.

    :param output: folder to write to.
    :param backend: for the titles.
    :param dataset: the data.
    :param fits: runs of each model.
    :return: the files.
    """
    titles = {"vae": f"{backend}: plain VAE", "spread": f"{backend}: spread delta-VAE"}
    written = [_save(plot_sample_grid(dataset.test_images[:64], title="held out"), output / "data")]
    for name, runs in fits.items():
        first = runs[0]
        samples = _as_images(first.samples[:64], dataset)
        axes = plot_sample_grid(samples, title=f"{titles[name]}, samples")
        written.append(_save(axes, output / f"samples_{name}"))
        count = len(first.reconstructions)
        axes = plot_reconstructions(
            dataset.test_images[:count],
            _as_images(first.reconstructions, dataset),
            spread=_as_images(first.inputs, dataset) if name == "spread" else None,
            title=f"{titles[name]}, held-out images",
        )
        written.append(_save(axes, output / f"reconstructions_{name}"))
        axes = plot_loss_curve(
            {f"seed {index}": run.losses for index, run in enumerate(runs)},
            xlabel="epoch",
            ylabel="loss (nats per image)",
            title=titles[name],
        )
        written.append(_save(axes, output / f"loss_{name}"))
    side_by_side = {
        "held-out images": dataset.test_images,
        "plain VAE": fits["vae"][0].samples,
        "plain VAE + its noise": fits["vae"][0].noisy_samples,
        "spread delta-VAE": fits["spread"][0].samples,
    }
    return [*written, _save(_draw_beside(side_by_side, dataset), output / "samples")]


def _draw_beside(images: Mapping[str, Any], dataset: Dataset) -> Any:
    """One grid each, small enough to be legible on a telephone."""
    figure = import_extra("matplotlib.figure", "draw").Figure(figsize=(6.5, 5.0))
    grids = figure.subplots(2, 2, gridspec_kw={"wspace": 0.04, "hspace": 0.14})
    for axes, (title, values) in zip(grids.flat, images.items(), strict=True):
        shown = _as_images(values[:24], dataset)
        plot_sample_grid(shown, num_columns=6, title=title, ax=axes).title.set_fontsize(14)
    return grids[0, 0]


def _as_images(flat: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[Any]:
    return np.asarray(flat, np.float64).reshape(-1, *dataset.image_shape)


def _save(axes: Any, stem: Path) -> Path:
    path = stem.with_suffix(".png")
    axes.figure.savefig(path, dpi=150, bbox_inches="tight")
    return path


def learning_rate_factor(progress: Any) -> Any:
    """
    Factor of the learning rate: 1 over the first half of training, then falling to 0.

    :param progress: share of training that is done, a number or an array of any backend.
    """
    remaining = 2 - 2 * progress
    # The smaller of 1 and ``remaining``, in operators that every backend's arrays have.
    return 1 - (remaining < 1) * (1 - remaining)


def num_batches(num_images: int, batch_size: int) -> int:
    """
    Number of mini-batches of an epoch.

    :param num_images: number of images.
    :param batch_size: images per batch; all of them if there are fewer.
    """
    return max(1, num_images // batch_size)


def minibatches(num_images: int, batch_size: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    """
    Indices of one epoch's mini-batches, shape (number of batches, batch size); a rest is left out.

    :param num_images: number of images.
    :param batch_size: images per batch; all of them if there are fewer.
    :param rng: shuffles.
    """
    size = min(batch_size, num_images)
    count = num_batches(num_images, batch_size)
    return rng.permutation(num_images)[: count * size].reshape(count, size)
