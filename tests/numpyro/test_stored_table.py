# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Training from a table of simulations in NumPyro, in compiled loops."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.infer import SVI
from whole_programs import KnowingGuide, Table

from numpyro_spread import KL, JointContrastELBO

BACKEND = SimpleNamespace(array=jnp.asarray)


def table(size=2000):
    rng = np.random.default_rng(0)
    z = rng.normal(size=size)
    return Table({"z": z, "x": z + 0.5 * rng.normal(size=size)})


def sites(b, x, mask=None):
    scale = numpyro.param("s", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0) * x, scale))


def arguments(x):
    sites(None, x)


def model(x=None):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Delta(z + 0.5 * random.normal(numpyro.prng_key())), obs=x)


def of_values(x=None):
    """A simulator that asks for the value of its latent."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Delta(jnp.asarray(float(np.asarray(z)))), obs=x)


CASES = {
    "data at sites": (model, KnowingGuide(BACKEND, sites, ()), ()),
    "data in arguments": (model, arguments, (np.float32(0.0),)),
    "a simulator in NumPy": (of_values, KnowingGuide(BACKEND, sites, ()), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_training_learns_the_posterior_of_the_table(name):
    program, guide, args = CASES[name]
    runs = []

    def counted(x=None):
        runs.append(x)
        program(x)

    loss = JointContrastELBO(divergence=KL(), simulations=table())
    assert loss.num_particles == 256
    svi = SVI(counted, loss.register(counted, guide), optax.adam(0.03), loss)
    result = svi.run(random.key(0), 400, *args, progress_bar=False)
    assert result.params["m"] == pytest.approx(0.8, abs=0.05)
    assert result.params["s"] == pytest.approx(0.447, abs=0.05)
    # By SVI.init, and for its shapes where a step is compiled or asks for them.
    assert len(runs) < 10


def test_every_step_takes_other_rows():
    loss = JointContrastELBO(divergence=KL(), simulations=table(), num_particles=3)
    guide = KnowingGuide(BACKEND, sites, ())
    params = {"m": 0.5, "s": 1.0}
    values = [float(loss.loss(random.key(seed), params, model, guide)) for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
