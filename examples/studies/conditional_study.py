# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What ``examples/*/conditional.py`` share: does a generator draw the class that is asked for?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spread_analysis.datasets import Dataset
from spread_analysis.evaluation import format_table, mean_and_error
from studies.gan_study import (
    RESULTS_FILE,
    SHOWN,
    Fit,
    LabelJudge,
    finish,
    picture,
    prepare,
)

#: Images of each class that are judged.
PER_CLASS = 200

# fit(seed, dataset, labels) -> one trained generator's images of those classes
FitConditional = Callable[[int, Dataset, npt.NDArray[Any]], Fit]


def compare_conditional(
    backend: str, args: argparse.Namespace, fit: FitConditional
) -> dict[str, Any]:
    """
    Train a conditional generator with every seed and see whether it draws the class asked for.

    :param backend: name of the backend.
    :param args: from :func:`parse_args`.
    :param fit: trains one generator.
    :return: what was written as JSON.
    :raises SystemExit: if the data cannot be read, saying which file is missing or corrupt.
    """
    dataset, output = prepare(args)
    judge = LabelJudge(dataset)
    asked = np.repeat(np.arange(judge.num_classes), PER_CLASS)
    obeyed: list[list[float]] = []
    seconds: list[float] = []
    for seed in range(args.seed, args.seed + args.num_seeds):
        fitted = fit(seed, dataset, asked)
        if not seconds:
            images = fitted.samples.reshape(judge.num_classes, PER_CLASS, *dataset.image_shape)
        seconds.append(fitted.seconds)
        right = judge.labels(np.nan_to_num(fitted.samples)) == asked
        obeyed.append([float(part.mean()) for part in right.reshape(judge.num_classes, -1)])
    real = judge.labels(dataset.test_images)
    results = {
        "backend": backend,
        "options": vars(args),
        "asked": [float(np.mean(real[dataset.test_labels == c] == c)) for c in np.unique(asked)],
        "obeyed": obeyed,
        "seconds": seconds,
    }
    (output / RESULTS_FILE).write_text(json.dumps(results, indent=1))
    rows = [str(label) for label in range(judge.num_classes)]
    shown = images[:, :SHOWN].reshape(-1, *dataset.image_shape)
    picture(f"{backend}, {args.dataset}: one class a row", shown, rows, output / "samples.png")
    finish(output, conditional_table([results]))
    return results


def conditional_table(all_results: Sequence[dict[str, Any]]) -> str:
    """
    Share in % of samples that the classifier takes for the class asked for, by class and in all.

    :param all_results: results of :func:`compare_conditional`, of the same data set.
    """
    rows = []
    named = [(results["backend"], results["obeyed"]) for results in all_results]
    for name, runs in [*named, ("real images", [all_results[0]["asked"]])]:
        shares = 100 * np.array(runs)
        by_class = [f"{share:.1f}" for share in shares.mean(0)]
        rows.append([name, *by_class, mean_and_error(shares.mean(1)).format(1)])
    header = ["asked for", *(str(label) for label in range(len(rows[0]) - 2)), "mean"]
    return format_table(header, rows)
