# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Two tasks of the benchmark of simulation-based inference, with their exact posteriors.

Prior, simulator and the layout of the files are those of Lueckmann et al. 2021
(https://arxiv.org/abs/2101.04653, appendix T).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from spread_core.validation import FloatArray

_BOX = 10.0  # gaussian_mixture: theta is uniform in +-10
_STDS = (1.0, 0.1)  # and x around it has one of these standard deviations
_VARIANCE = 0.1  # gaussian_linear: of theta and of x given theta


class Observation(NamedTuple):
    """
    An observation, and what is to be inferred from it.

    :param theta: The parameters behind the observation, shape ``(dim,)``.
    :param x: The observation, shape ``(dim,)``.
    :param posterior: Draws from the exact posterior, shape ``(num_draws, dim)``.
    """

    theta: FloatArray
    x: FloatArray
    posterior: FloatArray


@dataclass(frozen=True)
class Task:
    """A simulator and its prior; parameters and data have the same dimension.

    :param name: As in the benchmark.
    :param dim: Dimension of theta and x.
    :param published: C2ST of NPE and NRE at 10^4 simulations, the mean over ten observations.
    :param draw_prior: From generator and number to theta, shape ``(num, dim)``.
    :param simulate: From generator and theta to x, both of shape ``(num, dim)``.
    :param draw_posterior: From generator, x of shape ``(dim,)`` and number to exact draws of theta.
    :param in_support: From theta, shape ``(..., dim)``, to whether the prior allows it.
    """

    name: str
    dim: int
    published: tuple[float, float]
    draw_prior: Callable[[np.random.Generator, int], FloatArray]
    simulate: Callable[[np.random.Generator, FloatArray], FloatArray]
    draw_posterior: Callable[[np.random.Generator, FloatArray, int], FloatArray]
    in_support: Callable[[FloatArray], Any]


def _mixture_noise(rng: np.random.Generator, theta: FloatArray) -> FloatArray:
    std = rng.choice(_STDS, size=(*theta.shape[:-1], 1))
    return theta + std * rng.standard_normal(theta.shape)


def _in_box(theta: FloatArray) -> Any:
    return (np.abs(theta) < _BOX).all(-1)


def _mixture_posterior(rng: np.random.Generator, x: FloatArray, num: int) -> FloatArray:
    # The prior is flat, so that theta given x is distributed as x given theta, inside the box.
    kept = np.empty((0, len(x)))
    while len(kept) < num:
        theta = _mixture_noise(rng, np.tile(x, (num, 1)))
        kept = np.concatenate([kept, theta[_in_box(theta)]])
    return kept[:num]


def _linear_posterior(rng: np.random.Generator, x: FloatArray, num: int) -> FloatArray:
    return x / 2 + np.sqrt(_VARIANCE / 2) * rng.standard_normal((num, len(x)))


#: The tasks by name.
TASKS = {
    "gaussian_mixture": Task(
        "gaussian_mixture",
        2,
        (0.661, 0.752),
        lambda rng, num: rng.uniform(-_BOX, _BOX, (num, 2)),
        _mixture_noise,
        _mixture_posterior,
        _in_box,
    ),
    "gaussian_linear": Task(
        "gaussian_linear",
        10,
        (0.552, 0.560),
        lambda rng, num: np.sqrt(_VARIANCE) * rng.standard_normal((num, 10)),
        lambda rng, theta: theta + np.sqrt(_VARIANCE) * rng.standard_normal(theta.shape),
        _linear_posterior,
        lambda theta: np.ones(theta.shape[:-1], bool),
    ),
}


@dataclass(frozen=True)
class Table:
    """Simulations, drawn once before any training, on the scale of the posteriors.

    The columns of x are standardised. Of theta its linear regression on x is taken off, and what is
    left is standardised: the posterior may be narrow compared with the prior, and a critic that
    sees theta on the scale of the prior is blind to its shape. Given x the map is one to one.

    :param theta: Shape ``(num, dim)``, mean zero and variance one, uncorrelated with x.
    :param x: What the simulator made of it, shape ``(num, dim)``, mean zero and variance one.
    :param x_moments: Mean and standard deviation of x before.
    :param regression: Mean, slope on the standardised x, and residual standard deviation of theta.
    """

    theta: FloatArray
    x: FloatArray
    x_moments: tuple[FloatArray, FloatArray]
    regression: tuple[FloatArray, FloatArray, FloatArray]

    @classmethod
    def simulate(cls, task: Task, num: int, seed: int) -> Table:
        """Run prior and simulator.

        :param task: The task.
        :param num: The budget.
        :param seed: Of the draws.
        """
        rng = np.random.default_rng(seed)
        theta = task.draw_prior(rng, num)
        x = task.simulate(rng, theta)
        moments = x.mean(0), x.std(0)
        x = (x - moments[0]) / moments[1]
        mean = theta.mean(0)
        slope = np.linalg.lstsq(x, theta - mean, rcond=None)[0]
        left = theta - mean - x @ slope
        std = left.std(0)
        scaled = (left / std).astype(np.float32), x.astype(np.float32)
        return cls(*scaled, moments, (mean, slope, std))

    def scale_x(self, x: ArrayLike) -> FloatArray:
        """Bring observations to the scale of the table."""
        mean, std = self.x_moments
        return ((np.asarray(x) - mean) / std).astype(np.float32)

    def scale_theta(self, theta: ArrayLike, x: ArrayLike) -> FloatArray:
        """Bring parameters to the scale of the table, given x on that scale."""
        mean, slope, std = self.regression
        return (np.asarray(theta) - mean - np.asarray(x) @ slope) / std

    def unscale_theta(self, theta: ArrayLike, x: ArrayLike) -> FloatArray:
        """Bring parameters back from the scale of the table, given x on that scale."""
        mean, slope, std = self.regression
        return np.asarray(theta, np.float64) * std + mean + np.asarray(x) @ slope

    def split(self, share: float = 0.1) -> tuple[Table, Table]:
        """Simulations to train on, and the last ones, to stop by.

        :param share: Of the latter.
        """
        cut = len(self.x) - round(share * len(self.x))
        return (
            replace(self, theta=self.theta[:cut], x=self.x[:cut]),
            replace(self, theta=self.theta[cut:], x=self.x[cut:]),
        )


def load_observations(
    task: Task, num_draws: int, data_dir: str | Path | None = None, num: int = 3
) -> list[Observation]:
    """Observations with draws from their exact posteriors.

    :param task: The task.
    :param num_draws: Draws for an observation, at most 10,000 if they are read.
    :param data_dir: Folder of the benchmark's files,
        ``task/num_observation_1/reference_posterior_samples.csv.bz2`` and so on; None draws
        observations from prior and simulator, and theta from the closed form of the posterior.
    :param num: The first so many.
    """
    observations = []
    for index in range(1, num + 1):
        if data_dir is not None:
            folder = Path(data_dir) / task.name / f"num_observation_{index}"
            posterior = _read(folder / "reference_posterior_samples.csv.bz2")[:num_draws]
            theta, x = (_read(folder / f"{n}.csv")[0] for n in ("true_parameters", "observation"))
        else:
            rng = np.random.default_rng([index, task.dim])
            theta = task.draw_prior(rng, 1)[0]
            x = task.simulate(rng, theta[None])[0]
            posterior = task.draw_posterior(rng, x, num_draws)
        observations.append(Observation(theta, x, posterior))
    return observations


def _read(path: Path) -> FloatArray:
    return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
