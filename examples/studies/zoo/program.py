# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Run rows of the zoo in one backend: options, judge, files."""

from __future__ import annotations

import argparse
import importlib
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
from studies.zoo.data import DATASETS, ZooData, load_zoo_data
from studies.zoo.kept import RESULTS_FILE, Shown, are_same_runs, read_kept, write_kept
from studies.zoo.page import SAMPLES_FILE
from studies.zoo.report import (
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
    parser.add_argument("--dataset", default="digits", choices=DATASETS)
    parser.add_argument("--data-dir", help="folder of the data set's files (digits need none)")
    said = "keep the rows that are in the output folder with the same settings"
    parser.add_argument("--resume", action="store_true", help=said)
    parser.add_argument("--seed", default=0, type=int, help="of the first run")
    parser.add_argument("--num-seeds", type=int, help="runs per row, instead of the row's own")
    parser.add_argument("-n", "--num-steps", type=int, help="instead of the row's own")


def check_zoo_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """
    End the program if an option is out of its range.

    :param parser: the parser.
    :param args: what it has read.
    """
    if any(given is not None and given < 1 for given in (args.num_seeds, args.num_steps)):
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
    Train, judge and report rows; the numbers are written after every row.

    :param backend: name of the backend.
    :param rows: rows, each with what trains it.
    :param args: ``output``, ``smoke_test`` and the options of :func:`add_zoo_options`.
    :return: what was written as JSON.
    :raises SystemExit: if a row has failed, after all others.
    """
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    data = load_zoo_data(args.smoke_test, args.dataset, args.data_dir)
    judge = SampleJudge(data.dataset)
    results: dict[str, Any] = {
        "backend": backend,
        "dataset": args.dataset,
        "smoke_test": args.smoke_test,
        "num_train": len(data.train_images),
        "num_held_out": len(data.test_images),
        "num_samples": judge.num_samples,
        "num_seeds": args.num_seeds or (1 if args.smoke_test else None),
        "features": judge.features.description,
        "real": judge.real()._asdict(),
        "rows": {},
        "errors": {},
    }
    shown: Shown = {}
    if args.resume:
        results["rows"], shown = read_kept(output, results)
    for row, train in rows:
        all_settings = [
            settings_for(
                row, seed, judge.num_samples, args.smoke_test, args.num_steps, args.dataset
            )
            for seed in seeds(row, args)
        ]
        if are_same_runs(results["rows"].get(row.name, ()), all_settings):
            print(f"{backend}: {row.title}, as before", flush=True)
            continue
        runs: list[dict[str, Any]] = []
        results["rows"][row.name] = runs
        shown.pop(row.name, None)
        for settings in all_settings:
            try:
                trained = train(row.name, data, settings)
                check_trained(row, trained, judge.num_samples, data.num_pixels)
            except Exception as error:
                # A run takes half an hour: one row must not cost the others.
                traceback.print_exc()
                results["errors"][row.name] = f"{type(error).__name__}: {error}"
                runs.clear()  # no mean over fewer seeds than the table says
                shown.pop(row.name, None)
                break
            runs.append({**numbers(trained, judge), **settings._asdict()})
            shown.setdefault(row.name, np.asarray(trained.samples[:SHOWN], np.float32))
            print(f"{backend}: {row.title}, {trained.seconds:.0f} s", flush=True)
        write_kept(output, results, shown)
    draw_samples(f"zoo, {backend}", data, shown, output / SAMPLES_FILE)
    report = f"{describe(results)}\n\n{zoo_table([results])}"
    (output / TABLE_FILE).write_text(report + "\n")
    print(f"\n{report}\n\n{SAMPLES_FILE}, {TABLE_FILE} and {RESULTS_FILE} are in {output}.")
    if results["errors"]:
        raise SystemExit(messages.failed_rows(results["errors"]))
    return results


def seeds(row: Row, args: argparse.Namespace) -> range:
    """
    The seeds of a row's runs.

    :param row: the row.
    :param args: ``seed``, ``num_seeds`` and ``smoke_test``.
    """
    number = args.num_seeds or (1 if args.smoke_test else row.num_seeds)
    return range(args.seed, args.seed + number)


def draw_samples(title: str, data: ZooData, shown: Shown, path: Path) -> None:
    """
    Draw images of every row below held-out ones.

    :param title: above them.
    :param data: what they were trained on.
    :param shown: by name of the row, :data:`SHOWN` images.
    :param path: the file to write.
    """
    names = [name for name in ROWS if name in shown]
    images = np.concatenate([data.test_images[:SHOWN], *(shown[name] for name in names)])
    titles = ["held out", *(ROWS[name].title for name in names)]
    picture(title, images.reshape(-1, *data.dataset.image_shape), titles, path)


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
