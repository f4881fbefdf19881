# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""What ``examples/*/avb_vae.py`` share: options, binary images, judgement, table and picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from tqdm import tqdm

from spread_analysis.critic import EvidenceReport
from spread_analysis.datasets import ImageArray
from spread_analysis.evaluation import MeanAndError, format_table, mean_and_error
from spread_analysis.log_evidence import LogEvidence
from spread_analysis.plots import COLOURS, INK, mosaic, show_image
from studies.comparison import minibatches
from studies.options import add_run_options, read_dataset

#: Losses for training decoders after a common start, by their names on the command line.
LOSSES = ("vae", "iwae", "exact", "avb", "avb-plain", "semi-implicit")
#: Images in a row of the picture.
NUM_SHOWN = 8

_TITLES = {
    "vae": "VAE",
    "iwae": "IWAE, 5 samples",
    "exact": "AVB's guide, its density known",
    "avb": "AVB, adaptive contrast",
    "avb-plain": "AVB, plain contrast",
    "semi-implicit": "semi-implicit",
}
_HEADER = ("", "log p", "- VAE", "± paired", "reported", "- exact", "fresh critic", "warned",
           "seconds")  # fmt: skip
# Binarised once and for all, alike in both backends and for every seed.
_BINARISE_SEED = 0


@dataclass(frozen=True)
class Preset:
    """Settings for a data set; all models use the same."""

    num_steps: int
    start_steps: int
    hidden_dim: int
    held_out: float
    num_ais: int


PRESETS = {
    "digits": Preset(3000, 750, 64, 0.2, 50),
    "mnist": Preset(5000, 1000, 300, 0.1, 20),
    "fashion-mnist": Preset(5000, 1000, 300, 0.1, 20),
}
_SMOKE = Preset(40, 20, 16, 0.2, 3)


class Images(NamedTuple):
    """Images of zeros and ones, flattened.

    :param train: Shape ``(num_train, num_pixels)``, float32.
    :param test: Shape ``(num_test, num_pixels)``.
    :param shape: Height and width.
    """

    train: ImageArray
    test: ImageArray
    shape: tuple[int, ...]


class Fit(NamedTuple):
    """The end of one run, as arrays.

    :param estimate: The value of the loss, with its sign changed, in nats per test image: a bound
        or an adversarial ELBO estimate.
    :param exact: The same by the density of AVB's guide, which AVB does not read; NaN for others.
    :param evidence: log p(x) of every test image, by importance weights that no critic is part of.
    :param ais: log p(x) of the first of them by annealed importance sampling, or None.
    :param check: The held-out check of the critic on ``num_checked`` test images, or None.
    :param warned: Categories of the warnings of the training.
    :param reconstructions: Pixels' probabilities at codes of the first test images, shape
        ``(NUM_SHOWN, num_pixels)``.
    :param samples: Pixels' probabilities at draws of the prior, alike.
    :param seconds: Wall time of the training after the common start.
    """

    estimate: float
    exact: float
    evidence: LogEvidence
    ais: LogEvidence | None
    check: EvidenceReport | None
    warned: tuple[str, ...]
    reconstructions: npt.NDArray[Any]
    samples: npt.NDArray[Any]
    seconds: float


class Result(NamedTuple):
    """One run in nats per test image.

    :param log_p: Mean of log p(x) by importance weights.
    :param difference: Mean of log p(x) less the VAE's of the same seed.
    :param difference_error: Its standard error over the images, paired.
    :param estimate: What the loss reported.
    :param exact: The same by the density of AVB's guide, or NaN.
    :param fresh_estimate: The same with a critic fitted anew, on the images that were checked; NaN
        without a critic.
    :param gap: What was reported on these images, less that.
    :param gap_error: Its standard error.
    :param effective_samples: The least effective number of importance weights of an image.
    :param ais_difference: AIS less importance weights, mean over the images that have both, or NaN.
    :param ais_error: Its standard error, that of both estimators; NaN where one is a lower bound.
    :param warned: Categories of the warnings of the training.
    :param seconds: Wall time of the training after the common start.
    """

    log_p: float
    difference: float
    difference_error: float
    estimate: float
    exact: float
    fresh_estimate: float
    gap: float
    gap_error: float
    effective_samples: float
    ais_difference: float
    ais_error: float
    warned: tuple[str, ...]
    seconds: float


# fit(loss, seed, whether AIS is wanted) -> the end of one run
FitModel = Callable[[str, int, bool], Fit]


def parse_args(
    backend: str, description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Return the options of ``avb_vae.py``; what is left out is chosen for the data set.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param description: What the program does.
    :param argv: The arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dataset", default="digits", choices=tuple(PRESETS))
    parser.add_argument("--data-dir", help="folder of the data set's files (digits need none)")
    parser.add_argument("--limit", type=int, help="use at most this many images")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("-n", "--num-steps", type=int, help="of the decoder")
    parser.add_argument("--start-steps", type=int, help="those that all models have in common")
    parser.add_argument("-lr", "--learning-rate", type=float, default=1e-3, help="the model's too")
    parser.add_argument("--critic-learning-rate", type=float, default=1e-3)
    parser.add_argument("--critic-steps", type=int, default=2, help="for each of the decoder")
    parser.add_argument("--critic-draws", type=int, default=16, help="per image and step")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--latent-dim", type=int, default=8)
    parser.add_argument("--hidden-dim", type=int, help="of all nets")
    parser.add_argument("--bend-dim", type=int, default=128, help="hidden units of what bends")
    parser.add_argument("--num-mixture", type=int, default=10, help="of the semi-implicit ELBO")
    parser.add_argument("--num-weights", type=int, default=1000, help="per test image")
    parser.add_argument("--proposal-steps", type=int, default=1500, help="of the weights' guide")
    parser.add_argument("--num-ais", type=int, help="test images for annealed importance sampling, "
                        "in runs of the first seed, or 0")  # fmt: skip
    parser.add_argument("--num-temperatures", type=int, default=1000, help="of it")
    parser.add_argument("--num-checked", type=int, default=200, help="test images on which a fresh "
                        "critic checks the estimate, or 0")  # fmt: skip
    parser.add_argument("--check-steps", type=int, default=1000, help="of the fresh critic")
    parser.add_argument("--num-evaluations", type=int, default=10, help="of the loss at the end")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--num-seeds", type=int, default=1, help="runs per loss")
    add_run_options(parser, backend, "avb-vae", compiles=True)
    args = parser.parse_args(argv)
    preset = _SMOKE if args.smoke_test else PRESETS[args.dataset]
    for option, value in asdict(preset).items():
        if getattr(args, option, None) is None:
            setattr(args, option, value)
    if args.smoke_test:
        args.limit, args.num_weights, args.num_temperatures = args.limit or 400, 20, 10
        args.proposal_steps, args.check_steps, args.num_checked = 20, 20, 20
    if not 0 < args.start_steps < args.num_steps:
        parser.error("--num-steps must be more than --start-steps, and these at least 1")
    return args


def load_images(args: argparse.Namespace) -> Images:
    """Return the data set, every pixel drawn once with its grey value as probability.

    :param args: Options from :func:`parse_args`.
    :raises SystemExit: If the data cannot be read.
    """
    dataset = read_dataset(args, held_out=args.held_out)
    rng = np.random.default_rng(_BINARISE_SEED)
    train, test = (
        (rng.random(grey.shape) < grey).astype(np.float32).reshape(len(grey), -1)
        for grey in (dataset.train_images, dataset.test_images)
    )
    return Images(train, test, dataset.image_shape)


def batches(num_images: int, batch_size: int, num_steps: int, seed: int) -> npt.NDArray[Any]:
    """Indices of mini-batches, shape ``(num_steps, batch_size)``, epoch after epoch.

    :param num_images: Number of images.
    :param batch_size: Images per batch; all of them if there are fewer.
    :param num_steps: Number of batches.
    :param seed: Of the shuffling.

    >>> batches(10, 4, 3, 0).shape
    (3, 4)
    """
    rng = np.random.default_rng(seed)
    epochs = [minibatches(num_images, batch_size, rng)]
    while sum(map(len, epochs)) < num_steps:
        epochs.append(minibatches(num_images, batch_size, rng))
    return np.concatenate(epochs)[:num_steps]


def judge(fit: Fit, vae: Fit | None, num_checked: int) -> Result:
    """Compare the end of a run with the VAE of the same seed, image by image.

    :param fit: The end of the run.
    :param vae: The VAE's; None leaves the difference at NaN.
    :param num_checked: Number of images of the held-out check, which sums over them.
    """
    log_p = fit.evidence.values
    nan = float("nan")
    difference = difference_error = nan
    if vae is not None:
        paired = mean_and_error(log_p - vae.evidence.values)
        difference, difference_error = paired.mean, paired.error
    fresh = gap = gap_error = ais_difference = ais_error = nan
    if fit.check is not None:
        fresh, gap = fit.check.fresh_estimate / num_checked, fit.check.gap / num_checked
        gap_error = fit.check.standard_error / num_checked
    if fit.ais is not None:
        num = len(fit.ais.values)
        ais_difference = float((fit.ais.values - log_p[:num]).mean())
        errors = np.hypot(fit.ais.standard_error, fit.evidence.standard_error[:num])
        loose = fit.ais.is_lower_bound | fit.evidence.is_lower_bound[:num]
        ais_error = nan if loose.any() else float(np.sqrt(np.square(errors).sum()) / num)
    return Result(
        float(log_p.mean()),
        float(difference),
        float(difference_error),
        float(fit.estimate),
        float(fit.exact),
        float(fresh),
        float(gap),
        float(gap_error),
        float(fit.evidence.effective_sample_size.min()),
        ais_difference,
        ais_error,
        tuple(fit.warned),
        float(fit.seconds),
    )


def compare(
    backend: str, args: argparse.Namespace, images: Images, fit: FitModel
) -> dict[str, list[Result]]:
    """
    Train with every loss and seed; print and draw the reported values and log p(x).

    :param backend: Name of the backend.
    :param args: Options from :func:`parse_args`.
    :param images: The data, from :func:`load_images`.
    :param fit: Trains one model.
    :return: For each loss a list of one :class:`Result` per seed.
    """
    seeds = range(args.seed, args.seed + args.num_seeds)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Result]] = {name: [] for name in args.losses}
    first: dict[str, Fit] = {}
    with tqdm(total=len(args.losses) * len(seeds)) as progress:
        for seed in seeds:
            vae = None
            # The VAE comes first, since the others are compared with it.
            for name in sorted(args.losses, key=LOSSES.index):
                progress.set_description(f"{name}, seed {seed}")
                run = fit(name, seed, bool(args.num_ais) and seed == args.seed)
                vae = run if name == "vae" else vae
                results[name].append(judge(run, vae, args.num_checked))
                first.setdefault(name, run)
                # After every run: on MNIST one takes minutes.
                _write(output, args, results)
                progress.update()
    _print(args, images, results)
    _figure(backend, images, first, results).savefig(
        output / "avb_vae.png", dpi=150, bbox_inches="tight"
    )
    print(f"\npicture: {output / 'avb_vae.png'}")
    return results


def _write(output: Path, args: argparse.Namespace, results: Mapping[str, Sequence[Result]]) -> None:
    runs = {name: [run._asdict() for run in value] for name, value in results.items()}
    text = json.dumps({"options": vars(args), "runs": runs}, indent=1)
    (output / "summary.json").write_text(text + "\n")


def _print(
    args: argparse.Namespace, images: Images, results: Mapping[str, Sequence[Result]]
) -> None:
    print(
        f"\n{args.dataset}: {len(images.train)} training and {len(images.test)} test images; nats "
        "per test image, seed by seed.\nlog p by importance weights; reported: the bound or the "
        "adversarial ELBO estimate;\n- exact: reported less the ELBO by the guide's density, which "
        "AVB does not read;\nfresh critic: reported less what a critic fitted anew says."
    )
    rows = []
    for name in args.losses:
        for run in results[name]:
            warned = "false evidence" if "FalseEvidenceWarning" in run.warned else "-"
            gap = "-" if np.isnan(run.gap) else f"{run.gap:+.2f} ± {run.gap_error:.2f}"
            rows.append(
                [
                    _TITLES[name],
                    f"{run.log_p:.2f}",
                    "-" if np.isnan(run.difference) else f"{run.difference:+.2f}",
                    "-" if np.isnan(run.difference) else f"{run.difference_error:.2f}",
                    f"{run.estimate:.2f}",
                    "-" if np.isnan(run.exact) else f"{run.estimate - run.exact:+.2f}",
                    gap,
                    warned,
                    f"{run.seconds:.0f}",
                ]
            )
    print(format_table(_HEADER, rows))
    for name in args.losses:
        run = results[name][0]
        if not np.isnan(run.ais_difference):
            difference = MeanAndError(run.ais_difference, run.ais_error).format()
            print(
                f"{_TITLES[name]}: AIS less importance weights {difference} "
                f"({args.num_ais} images), at least {run.effective_samples:.0f} effective weights "
                f"of {args.num_weights}"
            )


def _figure(
    backend: str,
    images: Images,
    fits: Mapping[str, Fit],
    results: Mapping[str, Sequence[Result]],
) -> Any:
    figure = Figure((13.5, 1.2 + 0.44 * (len(fits) + 1)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 1.15))
    names = list(fits)
    codes = [fits[name].reconstructions for name in names]
    _rows(left, images, [images.test[:NUM_SHOWN], *codes], "reconstructions of test images")
    _label(left, ["data", *(_TITLES[name] for name in names)])
    blank = np.full((NUM_SHOWN, images.test.shape[1]), np.nan)
    _rows(middle, images, [blank, *(fits[name].samples for name in names)], "samples")
    for row, name in enumerate(names, 1):
        colour = COLOURS[LOSSES.index(name)]
        for run in results[name]:
            right.plot([run.log_p, run.estimate], [row, row], color=colour, lw=1.2, zorder=1)
            right.scatter(run.log_p, row, s=42, color=colour, zorder=2)
            right.scatter(run.estimate, row, s=42, color="white", edgecolor=colour, zorder=2)
    right.scatter([], [], s=42, color=INK, label="log p(x)")
    right.scatter([], [], s=42, color="white", edgecolor=INK, label="what the loss reports")
    # The rows of the images, the first of which has room for the legend.
    right.set(ylim=(len(names) + 0.5, -0.5), yticks=[], xlabel="nats per test image")
    right.legend(frameon=False, fontsize=9, ncols=2, loc="upper center")
    right.grid(True, axis="x", color="#dddddd", lw=0.6)
    right.set_axisbelow(True)
    right.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(f"One decoder trained with {len(names)} losses ({backend})")
    return figure


def _rows(ax: Any, images: Images, rows: Sequence[Any], title: str) -> None:
    """A row of images for each entry."""
    stacked = np.concatenate([np.asarray(row, np.float64)[:NUM_SHOWN] for row in rows])
    grid = stacked.reshape(-1, *images.shape, 1)
    show_image(ax, mosaic(grid, len(rows), len(grid) // len(rows), (0.0, 1.0)), "gray")
    ax.set_title(title, fontsize=10)


def _label(ax: Any, labels: Sequence[str]) -> None:
    """Names the rows of images."""
    bottom, top = sorted(ax.get_ylim())
    step = (top - bottom) / len(labels)
    centres = [bottom + step * (row + 0.5) for row in range(len(labels))]
    ax.set_yticks(centres, labels, fontsize=9, color=INK)
    ax.tick_params(length=0)
