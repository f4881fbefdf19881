# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""A task of the benchmark of simulation-based inference: prior, simulator, published figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from spread_core.validation import FloatArray
from studies.sbi_tasks.published import PUBLISHED

# simulate(rng, theta of shape (num, dim)) -> x of shape (num, num_data)
Simulate = Callable[[np.random.Generator, FloatArray], FloatArray]
# draw_posterior(rng, x of shape (num_data,), num) -> theta of shape (num, dim)
DrawPosterior = Callable[[np.random.Generator, FloatArray, int], FloatArray]


@dataclass(frozen=True)
class Prior:
    """
    The prior of one site of a program, by a name that Pyro and NumPyro share.

    :param distribution: ``"Uniform"``, ``"Normal"``, ``"LogNormal"`` or ``"MultivariateNormal"``.
    :param parameters: Its arguments, numbers for a scalar site and vectors for a vector.
    """

    distribution: str
    parameters: Mapping[str, Any]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the site: ``()`` or ``(dim,)``."""
        return np.shape(next(iter(self.parameters.values())))

    @property
    def interval(self) -> tuple[FloatArray, FloatArray]:
        """Least and largest value that the prior allows, each of the site's shape."""
        infinite = np.full(self.shape, np.inf)
        if self.distribution == "Uniform":
            return tuple(np.asarray(self.parameters[k], float) for k in ("low", "high"))  # type: ignore[return-value]
        return (np.zeros(self.shape) if self.distribution == "LogNormal" else -infinite), infinite

    def draw(self, rng: np.random.Generator, num: int) -> FloatArray:
        """Draws of shape ``(num,) + shape``."""
        values = {name: np.asarray(value, float) for name, value in self.parameters.items()}
        size = (num, *self.shape)
        if self.distribution == "Uniform":
            return rng.uniform(values["low"], values["high"], size)
        if self.distribution == "MultivariateNormal":
            # P = L L': L'^-1 times standard Normals has precision P.
            root = np.linalg.cholesky(values["precision_matrix"])
            return values["loc"] + np.linalg.solve(root.T, rng.standard_normal(size).T).T
        normal = values["loc"] + values["scale"] * rng.standard_normal(size)
        return np.exp(normal) if self.distribution == "LogNormal" else normal


@dataclass(frozen=True)
class SbiTask:
    """
    Prior, simulator and what is known of the posterior.

    :param name: As in the benchmark.
    :param priors: By latent site, in the order of theta's columns.
    :param num_data: Length of x.
    :param simulate: From generator and theta, shape ``(num, dim)``, to x, ``(num, num_data)``.
    :param draw_posterior: From generator, x and number to exact draws of theta; None where only the
        benchmark's reference draws are known.
    :param folder: Where its files lie, below the folder of the benchmark's data.
    :param observation_file: The file of an observation.
    """

    name: str
    priors: Mapping[str, Prior]
    num_data: int
    simulate: Simulate
    draw_posterior: DrawPosterior | None = None
    folder: str = ""
    observation_file: str = "observation.csv"
    published: Mapping[str, tuple[float, float, float]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.folder or self.name)
        object.__setattr__(self, "published", PUBLISHED[self.name])

    @cached_property
    def dim(self) -> int:
        """Dimension of theta."""
        return sum(int(np.prod(prior.shape)) for prior in self.priors.values())

    def draw_prior(self, rng: np.random.Generator, num: int) -> FloatArray:
        """Draws of theta, shape ``(num, dim)``."""
        return self.join({name: prior.draw(rng, num) for name, prior in self.priors.items()})

    def in_support(self, theta: FloatArray) -> Any:
        """Whether the prior allows theta, from shape ``(..., dim)`` to ``(...)``."""
        low, high = (
            np.concatenate([np.ravel(prior.interval[k]) for prior in self.priors.values()])
            for k in (0, 1)
        )
        return ((theta >= low) & (theta <= high)).all(-1)

    def split(self, theta: ArrayLike) -> dict[str, FloatArray]:
        """Theta's columns as the values of the sites, the leading shape kept."""
        theta, start, values = np.asarray(theta), 0, {}
        for name, prior in self.priors.items():
            size = int(np.prod(prior.shape))
            columns = theta[..., start : start + size]
            values[name] = columns if prior.shape else columns[..., 0]
            start += size
        return values

    def join(self, values: Mapping[str, ArrayLike]) -> FloatArray:
        """The values of the sites as columns of theta, the reverse of :meth:`split`."""
        columns = []
        for name, prior in self.priors.items():
            value = np.asarray(values[name], float)
            columns.append(value if prior.shape else value[..., None])
        return np.concatenate(columns, -1)

    def run(self, rng: np.random.Generator, *values: ArrayLike) -> FloatArray:
        """The simulator as a program calls it: from the values of the sites to x.

        :param rng: The generator.
        :param values: Of every latent site in order, with one leading batch dimension.
        :return: Shape ``(num, num_data)``.
        """
        return self.simulate(rng, self.join(dict(zip(self.priors, values, strict=True))))

    def run_prior(self, num: int, seed: int) -> tuple[FloatArray, FloatArray]:
        """Theta and x of so many runs, each a row, in float32 as all methods see them."""
        rng = np.random.default_rng(seed)
        theta = self.draw_prior(rng, num)
        return theta.astype(np.float32), self.simulate(rng, theta).astype(np.float32)
