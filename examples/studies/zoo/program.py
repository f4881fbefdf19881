# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Run rows of the zoo in one backend: options, judge, files."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spread_analysis.evaluation import SampleJudge, SampleQuality
from studies.gan_study import picture
from studies.options import add_run_options
from studies.zoo import messages
from studies.zoo.data import ZooData, load_zoo_data
from studies.zoo.report import (
    RESULTS_FILE,
    SAMPLES_FILE,
    TABLE_FILE,
    describe,
    zoo_table,
)
from studies.zoo.rows import ROWS, Row, Settings, Trained, check_trained, settings_for

#: Images of a row of the picture.
SHOWN = 12

# train(row, data, settings) -> one trained system
TrainRow = Callable[[str, ZooData, Settings], Trained]


def main(backend: str, system: str, train: TrainRow, argv: Sequence[str] | None = None) -> None:
    """
    The program of one file: train its rows, judge them, write table, picture and numbers.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param system: name of the file.
    :param train: trains one row.
    :param argv: the arguments; None takes those of the process.
    """
    names = [name for name, row in ROWS.items() if row.system == system]
    parser = argparse.ArgumentParser(description=f"{system} of the zoo, in {backend}.")
    add_zoo_options(parser)
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    add_run_options(parser, backend, f"zoo-{system}")
    args = parser.parse_args(argv)
    check_zoo_options(parser, args)
    set_device(backend, args)
    run_rows(backend, [(ROWS[name], train) for name in args.rows], args)


def add_zoo_options(parser: argparse.ArgumentParser) -> None:
    """
    The options of every program of the zoo, in addition to those of all examples.

    :param parser: the parser.
    """
    parser.add_argument("--seed", default=0, type=int, help="of the first run")
    parser.add_argument("--num-seeds", default=1, type=int, help="runs per row")
    parser.add_argument("-n", "--num-steps", type=int, help="instead of the row's own")


def check_zoo_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """
    End the program if an option is out of its range.

    :param parser: the parser.
    :param args: what it has read.
    """
    if args.num_seeds < 1 or (args.num_steps is not None and args.num_steps < 1):
        parser.error("--num-seeds and --num-steps must be at least 1")


def set_device(backend: str, args: argparse.Namespace) -> None:
    """
    Pass threads or device on to the backend, which this package never imports otherwise.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param args: with what :func:`studies.options.add_run_options` has added.
    """
    if backend == "pyro":
        torch = importlib.import_module("torch")
        torch.set_num_threads(args.num_threads)
        torch.set_default_device("cuda" if args.cuda else "cpu")
    else:
        importlib.import_module("numpyro").set_platform(args.device)


def run_rows(
    backend: str, rows: Sequence[tuple[Row, TrainRow]], args: argparse.Namespace
) -> dict[str, Any]:
    """
    Train, judge and report rows; files are brought up to date after every row.

    :param backend: name of the backend.
    :param rows: rows, each with what trains it.
    :param args: ``output``, ``seed``, ``num_seeds``, ``num_steps`` and ``smoke_test``.
    :return: what was written as JSON.
    :raises SystemExit: if a row has failed, after all others.
    """
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    data = load_zoo_data(args.smoke_test)
    judge = SampleJudge(data.dataset)
    results: dict[str, Any] = {
        "backend": backend,
        "smoke_test": args.smoke_test,
        "num_train": len(data.train_images),
        "num_held_out": len(data.test_images),
        "num_samples": judge.num_samples,
        "num_seeds": args.num_seeds,
        "features": judge.features.description,
        "real": judge.real()._asdict(),
        "rows": {},
        "errors": {},
    }
    shown, titles = [data.test_images[:SHOWN]], ["held out"]
    for row, train in rows:
        runs: list[dict[str, Any]] = []
        results["rows"][row.name] = runs
        for seed in range(args.seed, args.seed + args.num_seeds):
            settings = settings_for(row, seed, judge.num_samples, args.smoke_test, args.num_steps)
            try:
                trained = train(row.name, data, settings)
                check_trained(row, trained, judge.num_samples, data.num_pixels)
            except Exception as error:
                # A run takes half an hour: one row must not cost the others.
                traceback.print_exc()
                results["errors"][row.name] = f"{type(error).__name__}: {error}"
                runs.clear()  # no mean over fewer seeds than the table says
                break
            runs.append({"seed": seed, **numbers(trained, judge), **settings._asdict()})
            if len(runs) == 1:
                shown.append(np.asarray(trained.samples[:SHOWN], np.float32))
                titles.append(row.title)
            print(f"{backend}: {row.title}, {trained.seconds:.0f} s", flush=True)
        (output / RESULTS_FILE).write_text(json.dumps(results, indent=1))
        images = np.concatenate(shown).reshape(-1, *data.dataset.image_shape)
        picture(f"zoo, {backend}", images, titles, output / SAMPLES_FILE)
    report = f"{describe(results)}\n\n{zoo_table([results], [row.name for row, _ in rows])}"
    (output / TABLE_FILE).write_text(report + "\n")
    print(f"\n{report}\n\n{SAMPLES_FILE}, {TABLE_FILE} and {RESULTS_FILE} are in {output}.")
    if results["errors"]:
        raise SystemExit(messages.failed_rows(results["errors"]))
    return results


def run_backend(backend: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """
    Train the rows of several systems in one process.

    :param backend: ``"pyro"`` or ``"numpyro"``.
    :param folder: where its files are.
    :param args: as of :func:`run_rows`, and ``systems``.
    :return: what was written as JSON.
    :raises SystemExit: if a row has failed, after all others.
    """
    set_device(backend, argparse.Namespace(num_threads=1, cuda=False, device="cpu"))
    sys.path.insert(0, str(folder))  # the files import what they share, as they do when run alone
    trains: dict[str, TrainRow] = {}
    for system in args.systems:
        trains[system] = importlib.import_module(system).train
    rows = [(row, trains[row.system]) for row in ROWS.values() if row.system in trains]
    return run_rows(backend, rows, args)


def numbers(trained: Trained, judge: SampleJudge) -> dict[str, Any]:
    """
    The table's numbers for one run; None for what is missing or not finite.

    :param trained: the run.
    :param judge: measures its samples.
    """
    found: dict[str, Any] = dict.fromkeys(SampleQuality._fields)
    if np.isfinite(trained.samples).all():
        found = judge(trained.samples)._asdict()
    found["log_likelihood"] = trained.log_likelihood
    found["importance_weighted"] = trained.importance_weighted
    found["seconds"] = trained.seconds
    return {k: None if v is None or not math.isfinite(v) else float(v) for k, v in found.items()}
