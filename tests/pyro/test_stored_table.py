# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Training from a table of simulations in Pyro."""

from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from whole_programs import KnowingGuide, Table

from pyro_spread import KL, JointContrastELBO

BACKEND = SimpleNamespace(array=torch.as_tensor)


def table(size=2000):
    rng = np.random.default_rng(0)
    z = rng.normal(size=size)
    return Table({"z": z, "x": z + 0.5 * rng.normal(size=size)})


def sites(b, x, mask=None):
    scale = pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)) * x, scale))


def arguments(x):
    sites(None, x)


CASES = {
    "data at sites": (KnowingGuide(BACKEND, sites, ()), ()),
    "data in arguments": (arguments, (torch.tensor(0.0),)),
}


@pytest.mark.parametrize("name", CASES)
def test_training_learns_the_posterior_of_the_table(name):
    guide, args = CASES[name]
    runs = []

    def model(x=None):
        runs.append(x)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Delta(z + 0.5 * torch.randn(z.shape)), obs=x)

    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    loss = JointContrastELBO(divergence=KL(), simulations=table(), vectorize_particles=True)
    assert loss.num_particles == 256
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), loss)
    for _ in range(300):
        svi.step(*args)
    assert pyro.param("m").item() == pytest.approx(0.8, abs=0.05)
    assert pyro.param("s").item() == pytest.approx(0.447, abs=0.05)
    assert len(runs) == 1  # for its shapes


def test_every_step_takes_other_rows():
    def model(x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    loss = JointContrastELBO(divergence=KL(), simulations=table(), num_particles=3)
    values = []
    for seed in (0, 0, 1):
        pyro.set_rng_seed(seed)
        values.append(loss.loss(model, KnowingGuide(BACKEND, sites, ())))
    assert values[0] == values[1] != values[2]
