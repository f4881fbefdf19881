# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""amortize with an optimiser or a loss of one's own: SVI trains, from the table alone."""

from types import SimpleNamespace

import flax.linen
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
import optax
import pyro
import pyro.distributions
import pytest
import torch
from pyro.infer import Trace_ELBO

import numpyro_spread
import pyro_spread

BACKENDS = {
    "pyro": (pyro_spread, pyro, pyro.distributions, torch.as_tensor),
    "numpyro": (numpyro_spread, numpyro, numpyro.distributions, jnp.asarray),
}
OPTIMS = {
    "pyro": lambda: pyro.optim.Adam({"lr": 5e-3}),
    "numpyro": lambda: optax.adam(5e-3),
}
QUICK = {"progress_bar": False, "ensemble": 1, "max_steps": 200, "observed": "x"}


@pytest.fixture(params=BACKENDS)
def backend(request):
    spread, ppl, dist, array = BACKENDS[request.param]
    return SimpleNamespace(
        spread=spread, ppl=ppl, dist=dist, array=array, optim=OPTIMS[request.param]
    )


@pytest.fixture
def model(backend):
    def model(x=None):
        theta = backend.ppl.sample("theta", backend.dist.Normal(0.0, 1.0))
        backend.ppl.sample("x", backend.dist.Normal(theta, 0.5), obs=x)

    return model


@pytest.fixture
def table(backend, model):
    return backend.spread.simulate(model, 1500, observed="x", seed=3)


def moments(posterior, x):
    draws = np.asarray(posterior.sample(x, num_samples=4000)["theta"])
    return draws.mean(), draws.std()


def test_an_optimiser_of_ones_own(backend, model, table):
    runs = []

    def counted(x=None):
        runs.append(1)
        return model(x)

    pyro.clear_param_store()
    posterior = backend.spread.amortize(counted, simulations=table, optim=backend.optim(), **QUICK)
    assert len(runs) < 500  # a look at every step, no simulations
    assert not pyro.get_param_store()
    mean, sd = moments(posterior, backend.array(np.float32(1.0)))
    assert abs(mean - 0.8) < 0.08
    assert abs(sd / 0.2**0.5 - 1) < 0.15
    assert posterior.record["held_out"] <= posterior.record["first"]
    assert posterior.record["epochs"] >= 2


def test_a_loss_of_ones_own(backend, model, table):
    spread = backend.spread
    loss = spread.JointContrastELBO(
        divergence=spread.KL(),
        noise={"x": spread.GaussianNoise(1.0)},
        vectorize_particles=True,
    )
    posterior = spread.amortize(model, simulations=table, loss=loss, **QUICK)
    # The posterior given the data with the noise.
    mean, sd = moments(posterior, backend.array(np.float32(1.0)))
    assert abs(mean - 1 / 2.25) < 0.12
    assert abs(sd / (1.25 / 2.25) ** 0.5 - 1) < 0.15
    assert loss.simulations is None  # it is the user's


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_no_better_than_the_start_is_the_start(backend, model, table):
    far = {"numpyro": lambda: optax.sgd(1e3), "pyro": lambda: pyro.optim.SGD({"lr": 1e3})}
    optim = far[backend.ppl.__name__]()
    posterior = backend.spread.amortize(model, simulations=table, optim=optim, patience=2, **QUICK)
    assert posterior.record["epochs"] == 2
    assert posterior.record["held_out"] == posterior.record["first"]
    mean, _ = moments(posterior, backend.array(np.float32(1.0)))  # the regression
    assert abs(mean - 0.8) < 0.1


def test_refused(backend, model, table):
    spread = backend.spread
    options = {"simulations": table, **QUICK}
    elbo = Trace_ELBO() if backend.ppl is pyro else numpyro.infer.Trace_ELBO()
    with pytest.raises(TypeError, match="loss must be a JointContrastELBO, got"):
        spread.amortize(model, loss=elbo, **options)
    critic = torch.nn.Linear(2, 1) if backend.ppl is pyro else flax.linen.Dense(1)
    loss = spread.JointContrastELBO(critic)
    with pytest.raises(ValueError, match="a discriminator needs fresh runs of the model"):
        spread.amortize(model, loss=loss, **options)
    with pytest.raises(TypeError, match=r"guide must be an AutoAmortized, which reads its data"):
        spread.amortize(model, guide=lambda x=None: None, **options)
