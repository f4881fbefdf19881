# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Make a table of simulations: run a program chunk by chunk, here or in workers, and keep them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from spread_analysis.simulation_files import SimulationFile, first_difference
from spread_analysis.simulations import Simulations
from spread_core.caller_warning import warn_user
from spread_core.messages import tables
from spread_core.runs import NotOneRunError, Runs, as_table, joined
from spread_core.validation import check_count
from spread_core.workers import count_workers, results

Piece = tuple[int, int]

# So many runs may fail in a row at the beginning before their error is raised.
_MOST_FAILURES = 50
_CHUNK_OF_ONE_RUN, _CHUNK_OF_RUNS = 1000, 100


class Program(Protocol):
    """A model at its arguments, as a backend runs it."""

    #: Whether a chunk is one run of the model.
    batched: bool
    #: Whether what a batched run draws depends on how many are in the chunk.
    depends_on_chunk: bool
    #: Number of simulations in a chunk.
    chunk_size: int

    def __call__(self, start: int, stop: int) -> Runs:
        """
        The simulations from number ``start`` up to ``stop``.

        :raises NotOneRunError: if they were to be one run, and cannot be.
        """

    def settle(self, num_threads: int) -> None:
        """Make another process what this one is."""

    def cannot_batch(self) -> Exception | None:
        """Why a chunk cannot be one run; None if it can."""

    def raise_at(self, row: int) -> None:
        """Let a run that fails raise its error."""


@dataclass(frozen=True)
class Options:
    """
    How simulations are to be made.

    :param num_simulations: how many.
    :param num_workers: number of processes.
    :param seed: of all random numbers.
    :param path: of the file, if there is to be one.
    :param observed: names of the sites that hold data, if the user has said it.
    :param chunk_size: how many are made, and written, at once.
    :param progress_bar: whether to show one.
    :param given: dict from sites that are not drawn to their values, row by row.
    :raises ValueError: if a number is out of its range.
    """

    num_simulations: int
    num_workers: int
    seed: Any
    path: str | os.PathLike[str] | None
    observed: str | Collection[str] | None
    chunk_size: int | None
    progress_bar: bool
    given: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_count("num_simulations", self.num_simulations)
        check_count("num_workers", self.num_workers)
        if self.chunk_size is not None:
            check_count("chunk_size", self.chunk_size)


class _Filling:
    """A table that is being filled."""

    def __init__(
        self,
        program: Program,
        options: Options,
        file: SimulationFile | None,
    ) -> None:
        self._program, self._options, self._file = program, options, file
        self._total = options.num_simulations
        self._done: dict[Piece, Runs] = {}
        self._unwritten: list[Piece] = []

    def load(self, changed: Callable[[], list[str]]) -> None:
        """Take in what is on disk, after a look whether it is of the same program."""
        assert self._file is not None
        parts, end = self._file.parts(), 0
        stored = max((stop for _, stop in parts), default=0)
        if stored > self._total:
            raise ValueError(tables.fewer(self._file.path, stored, self._total))
        for (start, stop), table in sorted(parts.items(), key=lambda part: part[0]):
            first = max(start, end)  # chunks may have had another size
            if first < stop:
                self._done[first, stop] = _as_runs(table.take(slice(first - start, None)))
                end = stop
        for (start, _), table in parts.items():
            if table.valid.any():
                self._compare(start, table, changed)
                break

    def _compare(self, start: int, table: Simulations, changed: Callable[[], list[str]]) -> None:
        assert self._file is not None
        first, count = 0, min(self._program.chunk_size, len(table))
        if not self._program.batched:
            first, count = int(table.valid.argmax()), 1
        rows = start + first, start + first + count
        stored = table.take(slice(first, first + count))
        again = self._program(*rows)
        if not again.values:
            self._program.raise_at(rows[0])
        found = first_difference(stored, _as_table(again))
        # A program with random numbers of its own never draws the same.
        if found and first_difference(_as_table(self._program(*rows)), _as_table(again)) is None:
            row = rows[0] + found[0]
            raise ValueError(tables.changed(self._file.path, row, found[1], changed()))

    def fill(self) -> Runs:
        """
        Make what is missing.

        :raises Exception: what the first runs have raised, if all of them have failed.
        """
        pieces = self._missing()
        with _bar(self._total, self._options.progress_bar) as bar:
            bar.update(self._total - sum(stop - start for start, stop in pieces))
            for piece, runs in results(self._program, pieces, self._options.num_workers):
                self._done[piece] = runs
                self._unwritten.append(piece)
                self._raise_if_all_fail()
                self._write()
                bar.update(piece[1] - piece[0])
        return joined([self._done[piece] for piece in sorted(self._done)])

    def _missing(self) -> list[Piece]:
        size, missing = self._program.chunk_size, []
        there = [row for start, stop in self._done for row in range(start, stop)]
        rows = set(range(self._total)).difference(there)
        for start in range(0, self._total, size):
            own = [row for row in range(start, min(start + size, self._total)) if row in rows]
            if own and (self._program.batched and self._program.depends_on_chunk):
                missing.append((start, min(start + size, self._total)))
            elif own:
                missing.append((own[0], own[-1] + 1))
        for piece in missing:
            for old in [o for o in self._done if o[0] < piece[1] and piece[0] < o[1]]:
                self._cut(old, piece)
        return missing

    def _cut(self, old: Piece, new: Piece) -> None:
        """Leave out of what is there what will be made anew."""
        runs = self._done.pop(old)
        for start, stop in ((old[0], min(old[1], new[0])), (max(old[0], new[1]), old[1])):
            if start < stop:
                rows = slice(start - old[0], stop - old[0])
                self._done[start, stop] = runs.take(rows)

    def _raise_if_all_fail(self) -> None:
        if any(runs.values for runs in self._done.values()):
            return
        failed = sum(len(runs.failed) for runs in self._done.values())
        if failed >= min(self._total, _MOST_FAILURES):
            self._program.raise_at(min(self._done)[0])
            raise RuntimeError(next(iter(self._done.values())).error)

    def _write(self) -> None:
        template = next((runs for runs in self._done.values() if runs.values), None)
        if self._file is None or template is None:
            return
        for piece in self._unwritten:
            runs = self._done[piece]
            if not runs.values:  # its rows are as those of others
                runs = joined([template, runs]).take(slice(len(template.failed), None))
            self._file.add(*piece, _as_table(runs))
        self._unwritten.clear()


def simulate_all(
    program: Program, options: Options, note: Mapping[str, Any], digests: Mapping[str, str]
) -> Simulations:
    """
    A table of simulations.

    :param program: that makes them.
    :param options: how they are to be made.
    :param note: what the simulations depend on, as far as that can be told.
    :param digests: of the numbers in the arguments, by argument.
    """
    total = options.num_simulations
    file = None if options.path is None else SimulationFile(options.path)
    if file is not None and file.note:
        file.check(note)
        program.batched = file.note["batched"]
        program.chunk_size = options.chunk_size or file.note["chunk_size"]
        if program.batched and program.depends_on_chunk:
            file.check({"chunk_size": program.chunk_size})
    else:
        _settle(program, options)

    def changed() -> list[str]:
        assert file is not None
        stored = file.note.get("digests", {})
        return sorted(name for name in digests if digests[name] != stored.get(name))

    while True:
        filling = _Filling(program, options, file)
        try:
            if file is not None:
                if file.note:
                    filling.load(changed)
                if file.num_simulations < total:
                    settings = {"batched": program.batched, "chunk_size": program.chunk_size}
                    file.start({**note, **settings, "digests": digests})
            runs = filling.fill()
            break
        except NotOneRunError as error:
            warn_user(tables.one_by_one(error))
            program.batched = False
            program.chunk_size = _default_size(program, options)
            if file is not None:
                file.forget()
    table = Simulations(*as_table(runs, options.observed))
    if file is not None and file.num_simulations < total:
        file.finish(table)
    return table


def _settle(program: Program, options: Options) -> None:
    """Find out how the program is to be run."""
    program.chunk_size = _default_size(program, options)
    reason = program.cannot_batch()
    if reason is not None:
        warn_user(tables.one_by_one(reason))
        program.batched = False
        program.chunk_size = _default_size(program, options)


def _default_size(program: Program, options: Options) -> int:
    if options.chunk_size is not None:
        return options.chunk_size
    if program.batched:
        return _CHUNK_OF_ONE_RUN
    share = options.num_simulations // (4 * count_workers(options.num_workers))
    return max(1, min(_CHUNK_OF_RUNS, share))


def _as_table(runs: Runs) -> Simulations:
    return Simulations(runs.values, runs.observed, runs.masks, runs.failed)


def _as_runs(table: Simulations) -> Runs:
    return Runs(table.values, table.masks, table.failed, table.observed)


def _bar(total: int, shown: bool) -> Any:
    # It comes with Pyro and NumPyro. What is done in a moment needs none.
    tqdm = importlib.import_module("tqdm.auto").tqdm
    return tqdm(total=total, disable=not shown, delay=2.0, desc="simulate", leave=False)
