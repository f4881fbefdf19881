# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The options that all examples share, and the data set that they name."""

from __future__ import annotations

import argparse
from typing import Any

from spread_analysis.datasets import Dataset, load_dataset


def add_run_options(
    parser: argparse.ArgumentParser,
    backend: str,
    program: str,
    num_threads: int | None = 1,
    *,
    compiles: bool = False,
) -> None:
    """Add the device, ``--smoke-test`` and ``--output`` to the options of an example.

    :param parser: The parser.
    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param program: Name of the example, of which the default folder is made.
    :param num_threads: PyTorch's threads if nothing is said. Small tensors are slower on two, and
        especially when other programs run.
    :param compiles: Whether to add ``--compile`` in Pyro; in NumPyro all programs compile.
    """
    if backend == "pyro":
        parser.add_argument("--num-threads", type=int, default=num_threads, help="CPU threads")
        parser.add_argument("--cuda", action="store_true", help="train on the GPU")
        if compiles:
            said = "record each loss and run it without Python, as NumPyro's programs do anyway"
            parser.add_argument("--compile", action="store_true", help=said)
    else:
        parser.add_argument("--device", default="cpu", choices=("cpu", "gpu", "tpu"))
    parser.add_argument("--smoke-test", action="store_true", help="tiny: does it run at all")
    parser.add_argument("--output", default=f"{program}-{backend}", help="folder of the pictures")


def reserved_share(dataset: str) -> float:
    """The share of training images that only the yardstick uses.

    Its features are learned from some, the scores of real images are of the others. The digits are
    too few to be divided once more.

    :param dataset: Name of the data set.
    """
    return 0.0 if dataset == "digits" else 1 / 6


def read_dataset(args: argparse.Namespace, **options: Any) -> Dataset:
    """The data set that the options name.

    :param args: Has ``dataset``, ``data_dir`` and ``limit``.
    :param options: Others of :func:`spread_analysis.datasets.load_dataset`.
    :raises SystemExit: If the data cannot be read, saying which file is missing or corrupt.
    """
    try:
        return load_dataset(args.dataset, args.data_dir, limit=args.limit, **options)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
