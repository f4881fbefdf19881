# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0

"""Differential equations seen through noise: an epidemic, and predators with their prey."""

from __future__ import annotations

import numpy as np

from spread_core.validation import FloatArray
from studies.sbi_tasks.ode import solve
from studies.sbi_tasks.task import Prior, SbiTask

_POPULATION, _TESTED = 1e6, 1000
_DAYS: FloatArray = np.linspace(0, 153, 10)
_TIMES: FloatArray = np.linspace(0, 18.9, 10)
_NOISE = 0.1  # standard deviation of log x round the log of the population


def infected(theta: FloatArray) -> FloatArray:
    """Share of the population that is infected on every 17th day, shape ``(num, 10)``.

    :param theta: Rates of infection and recovery per day, shape ``(num, 2)``.
    """

    # Shares of the susceptible, and the log of the infected: it grows and falls by rates.
    def slope(y: FloatArray, rates: FloatArray) -> FloatArray:
        beta, gamma = rates.T
        new = beta * y[:, 0]
        return np.stack([-new * np.exp(y[:, 1]), new - gamma], -1)

    start = np.array([1 - 1 / _POPULATION, -np.log(_POPULATION)])
    states = solve(slope, np.tile(start, (len(theta), 1)), theta, _DAYS)
    return np.exp(states[..., 1])


def _sir(rng: np.random.Generator, theta: FloatArray) -> FloatArray:
    return rng.binomial(_TESTED, np.clip(infected(theta), 0, 1)).astype(float)


def populations(theta: FloatArray) -> FloatArray:
    """Prey at ten times, then predators, shape ``(num, 20)``.

    :param theta: Growth of the prey, its loss to a predator, death of predators, their growth by a
        prey, shape ``(num, 4)``.
    """

    # In logs, so that neither dies out by rounding.
    def slope(y: FloatArray, rates: FloatArray) -> FloatArray:
        prey, predators = np.exp(np.minimum(y, 50)).T
        alpha, beta, gamma, delta = rates.T
        return np.stack([alpha - beta * predators, delta * prey - gamma], -1)

    start = np.log([30.0, 1.0])
    states = solve(slope, np.tile(start, (len(theta), 1)), theta, _TIMES)
    return np.exp(states.transpose(0, 2, 1).reshape(len(theta), -1))


def _lotka_volterra(rng: np.random.Generator, theta: FloatArray) -> FloatArray:
    # The benchmark's limits.
    centre = np.log(np.clip(populations(theta), 1e-10, 1e4))
    return np.exp(centre + _NOISE * rng.standard_normal(centre.shape))


def _log_normal(loc: float, scale: float) -> Prior:
    return Prior("LogNormal", {"loc": loc, "scale": scale})


SIR = SbiTask(
    "sir",
    {"beta": _log_normal(np.log(0.4), 0.5), "gamma": _log_normal(np.log(0.125), 0.2)},
    10,
    _sir,
)
LOTKA_VOLTERRA = SbiTask(
    "lotka_volterra",
    {
        "alpha": _log_normal(-0.125, 0.5),
        "beta": _log_normal(-3.0, 0.5),
        "gamma": _log_normal(-0.125, 0.5),
        "delta": _log_normal(-3.0, 0.5),
    },
    20,
    _lotka_volterra,
)
