# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Options, data and report of the examples that train one model by several processes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spread_analysis.datasets import load_dataset

#: Losses that the examples train, one of each kind: a sum over the data, a mean, all pairs.
LOSSES = ("spread", "adversarial", "mmd")
SUMMARY_FILE = "summary.json"


def parse_args(
    description: str, arguments: Sequence[str] | None = None, processes: bool = False
) -> argparse.Namespace:
    """
    Options of the examples, the same in both backends.

    :param description: one line.
    :param arguments: what was typed; that of the process if left out.
    :param processes: whether options say how the processes find each other.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--loss", choices=LOSSES, default="spread")
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    parser.add_argument("--num-steps", type=int, default=2000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--hidden-dim", type=int, default=128)
    parser.add_argument("--latent-dim", type=int, default=8)
    parser.add_argument("--noise-scale", type=float, default=0.3, help="of the spread noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder for the summary; none is written")
    parser.add_argument("--cuda", action="store_true", help="a GPU for each process")
    parser.add_argument("--smoke-test", action="store_true", help="a few steps of small nets")
    if processes:
        parser.add_argument("--coordinator", help="address of process 0, such as 10.0.0.1:1234")
        parser.add_argument("--num-processes", type=int, default=1)
        parser.add_argument("--process-id", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.smoke_test:
        args.num_steps, args.batch_size, args.hidden_dim = 8, 32, 16
    return args


def digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """scikit-learn's digits, to train on and held out: pixels from 0 to 1, of shape (N, 64)."""
    dataset = load_dataset("digits")
    both = (dataset.train_images, dataset.test_images)
    train, test = (np.asarray(images.reshape(len(images), -1), np.float32) for images in both)
    return train, test


def write_summary(args: argparse.Namespace, **found: Any) -> None:
    """
    Print the results, and write them with the options if there is a folder for them.

    :param args: from :func:`parse_args`.
    :param found: numbers and lists by name.
    """
    for name, value in found.items():
        print(f"{name}: {value}")
    if args.output is None:
        return
    args.output.mkdir(parents=True, exist_ok=True)
    options = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()}
    text = json.dumps({"options": options, **found}, indent=1)
    (args.output / SUMMARY_FILE).write_text(text)
