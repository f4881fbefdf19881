# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Levels of the noise that are told in training: compiled, and to a critic that asks in vain."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

from pyro_spread import (
    AdversarialDivergence,
    GaussianNoise,
    MultiLevelNoise,
    SpreadELBO,
    annealed,
    compiled,
    concat_sites,
    two_player,
)

X = torch.linspace(-1.0, 1.0, 12).reshape(6, 2)


def model(x):
    w = pyro.param("w", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Delta(w * z, event_dim=1), obs=x)


def guide(x, x_level):
    v = pyro.param("v", torch.full((3, 2), 0.1))
    with pyro.plate("data", len(x)):
        loc = torch.cat([x, x_level[:, None]], -1) @ v
        pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))


@pytest.mark.parametrize("kind", ["levels", "annealed"])
def test_a_compiled_step_is_the_eager_one(kind):
    values = []
    for is_compiled in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        noise = GaussianNoise(1.0)
        if kind == "levels":
            noise = MultiLevelNoise(noise, [0.5, 2.0])
        loss = SpreadELBO({"x": annealed(noise, lambda step: 0.9**step)})
        if is_compiled:
            loss = compiled(loss, backend="eager")
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
        values.append([svi.step(X) for _ in range(4)])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_critic_that_asks_for_a_level_that_is_not_there():
    critic = concat_sites(torch.nn.Linear(3, 1), "x", "x_level")
    loss = AdversarialDivergence(critic, noise={"x": GaussianNoise(1.0)})
    adams = [pyro.optim.Adam({"lr": 1e-2}) for _ in range(2)]
    svi = SVI(model, lambda x: None, two_player(*adams), loss)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"'x_level' is neither.*This noise has no levels"):
        svi.step(X)
