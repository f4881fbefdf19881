# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""With inductor's own random numbers a compiled loss has the distribution of the loss."""

import functools

import pyro
import pytest
import torch
from pyro.infer import SVI
from pyro_every import Problem

from pyro_spread import compiled

OWN = functools.partial(compiled, options={"fallback_random": False})
COUNT = 10_000


def losses(name, how):
    problem = Problem(name)
    loss = how(problem.loss)
    svi = SVI(problem.model, problem.guide, pyro.optim.Adam({"lr": 0.0}), loss)
    pyro.set_rng_seed(3)
    return torch.tensor([svi.step(problem.x) for _ in range(COUNT)], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spread", "reverse KL two passes", "plain", "joint"])
def test_mean_and_standard_deviation(name):
    eager, own = losses(name, lambda loss: loss), losses(name, OWN)
    error = eager.std() / COUNT**0.5
    assert abs(eager.mean() - own.mean()) < 3 * 2**0.5 * error
    # Of squares the standard error is that of the fourth moment.
    squares = [(x - x.mean()).square() for x in (eager, own)]
    assert abs(squares[0].mean() - squares[1].mean()) < 3 * 2**0.5 * squares[0].std() / COUNT**0.5
