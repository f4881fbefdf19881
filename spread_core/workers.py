# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Work spread over processes by joblib, or over the cluster that joblib was told to use."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from spread_core.messages import tables


class Program(Protocol):
    """What is called: it can be pickled."""

    def __call__(self, start: int, stop: int) -> Any:
        """Do the work with these numbers."""

    def settle(self, num_threads: int) -> None:
        """
        Make another process what this one is, before the first call there.

        :param num_threads: how many threads a call may use.
        """


# Handlers of effects and random states belong to a process: threads take turns.
_turn = threading.Lock()
# What this process called last: what it has compiled is there.
_last: dict[str, Any] = {}


class _Task:
    """A call with its arguments in one, made by one thread of a process at a time."""

    def __init__(self, call: Program, num_workers: int) -> None:
        self._call, self._num_workers = call, num_workers
        self._name, self._home = uuid.uuid4().hex, os.getpid()

    def __call__(self, piece: tuple[int, int]) -> tuple[tuple[int, int], Any]:
        with _turn:
            if self._name not in _last:
                _last.clear()
                _last[self._name] = self._call
                if os.getpid() != self._home:
                    self._call.settle(max(1, (os.cpu_count() or 1) // self._num_workers))
            return piece, _last[self._name](*piece)


def uses_workers(num_workers: int) -> bool:
    """Whether work leaves this thread: several workers, or a cluster that joblib was told to use.

    :raises ImportError: if joblib is missing and several are wanted; the message names the extra.
    """
    if num_workers == 1 and sys.modules.get("joblib") is None:
        return False  # then nobody has told it anything
    joblib = _joblib()
    if num_workers != 1 or joblib.effective_n_jobs(None) > 1:
        return True
    backend, _ = joblib.parallel.get_active_backend()
    return not type(backend).__module__.startswith("joblib._parallel_backends")


def count_workers(num_workers: int) -> int:
    """How many workers there will be, as far as joblib knows it."""
    if not uses_workers(num_workers):
        return 1
    return max(1, _joblib().effective_n_jobs(None if num_workers == 1 else num_workers))


def results(
    call: Program, pieces: Sequence[tuple[int, int]], num_workers: int
) -> Iterator[tuple[tuple[int, int], Any]]:
    """
    Pieces and what the call made of each, in the order in which they are ready.

    :param call: is pickled, by cloudpickle where it needs that, and called in every worker.
    :param pieces: its arguments.
    :param num_workers: how many processes; 1 for what joblib's ``parallel_config`` says, or none.
    """
    if not uses_workers(num_workers):
        for piece in pieces:
            yield piece, call(*piece)
        return
    joblib = _joblib()
    options = {} if num_workers == 1 else {"n_jobs": num_workers}
    parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, **options)
    task = _Task(call, count_workers(num_workers))
    yield from parallel(joblib.delayed(task)(piece) for piece in pieces)


def _joblib() -> Any:
    try:
        return importlib.import_module("joblib")
    except ImportError as error:
        raise ImportError(tables.no_joblib()) from error
