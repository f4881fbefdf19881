# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Observations with draws from their posteriors: the benchmark's, or our own in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spread_core.validation import FloatArray
from studies.sbi_tasks.task import SbiTask
from studies.simulator_tasks import Observation

#: Of the benchmark, ``task/num_observation_1`` and so on.
NUM_OBSERVATIONS = 10


def available(task: SbiTask, data_dir: str | Path | None) -> list[int]:
    """Numbers of the observations that can be had.

    :param task: The task.
    :param data_dir: Folder of the benchmark's files; None makes three where the posterior is known
        in closed form, and none elsewhere.
    """
    if data_dir is None:
        return [1, 2, 3] if task.draw_posterior else []
    numbers = range(1, NUM_OBSERVATIONS + 1)
    return [k for k in numbers if (_folder(task, data_dir, k) / task.observation_file).exists()]


def load_observation(
    task: SbiTask, number: int, data_dir: str | Path | None = None, num_draws: int = 10_000
) -> Observation:
    """One observation.

    :param task: The task.
    :param number: One of :func:`available`.
    :param data_dir: Folder of the benchmark's files, ``observation.csv``, ``true_parameters.csv``
        and ``reference_posterior_samples.csv.bz2``; None draws theta, x and the posterior here.
    :param num_draws: Draws from the posterior, at most 10,000 if they are read.
    """
    if data_dir is not None:
        folder = _folder(task, data_dir, number)
        return Observation(
            _read(folder / "true_parameters.csv")[0],
            _read(folder / task.observation_file)[0],
            _read(folder / "reference_posterior_samples.csv.bz2")[:num_draws],
        )
    if task.draw_posterior is None:
        raise ValueError(f"The posterior of {task.name} has no closed form: pass `data_dir`.")
    rng = np.random.default_rng([number, task.dim])
    theta = task.draw_prior(rng, 1)
    x = task.simulate(rng, theta)[0]
    return Observation(theta[0], x, task.draw_posterior(rng, x, num_draws))


def _folder(task: SbiTask, data_dir: str | Path, number: int) -> Path:
    folder = Path(data_dir) / task.folder
    if (folder / "files").is_dir():  # as in the package ``sbibm``
        folder /= "files"
    return folder / f"num_observation_{number}"


def _read(path: Path) -> FloatArray:
    return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
