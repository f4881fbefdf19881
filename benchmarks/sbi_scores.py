# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""C2ST of draws against reference draws by the benchmark's protocol, remembered on disk.

In ten dimensions a score takes minutes of a core. What was scored once is found again by the hash
of both samples, whoever drew them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from studies.sbi_tasks import SBI_TASKS
from studies.sbi_tasks.observations import load_observation

from spread_analysis.metrics import c2st


class Job(NamedTuple):
    """One score: a trained method's draws at an observation."""

    task: str
    observation: int
    draws: str
    data_dir: str | None
    cache_dir: str


def score(job: Job) -> float:
    """The accuracy, from the cache if it is there."""
    with np.load(job.draws) as file:
        draws = np.asarray(file[str(job.observation)], np.float64)
    task = SBI_TASKS[job.task]
    reference = load_observation(task, job.observation, job.data_dir, len(draws)).posterior
    path = Path(job.cache_dir) / f"{fingerprint(reference, draws)}.json"
    if path.exists():
        return float(json.loads(path.read_text())["c2st"])
    # A method whose draws are not numbers has failed: told apart in every case.
    value = c2st(reference, draws) if np.isfinite(draws).all() else 1.0
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps({"c2st": value}))
    part.replace(path)
    return value


def fingerprint(reference: Any, draws: Any) -> str:
    """A hash of both samples and of their shapes."""
    digest = hashlib.sha256()
    for sample in (reference, draws):
        sample = np.ascontiguousarray(sample, np.float64)
        digest.update(repr(sample.shape).encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()


def score_all(jobs: Sequence[Job], num_processes: int) -> Iterator[tuple[Job, float]]:
    """Every job with its score, in the order in which they end."""
    # Children of a fresh interpreter: they read the number of threads from the environment.
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(score, job): job for job in jobs}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
