# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What depends on values is refused by its line, before anything has changed."""

import functools
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_spread import Simulator, compiled

AS_IT_IS = functools.partial(compiled, disable=True)


def conjugate(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def refused(model, match):
    svi = SVI(model, AutoNormal(conjugate), pyro.optim.Adam({"lr": 0.1}), AS_IT_IS(Trace_ELBO()))
    svi.step(torch.ones(4))
    with pytest.raises(NotImplementedError, match=match):
        svi.step(torch.ones(4))
    # Nothing is half done: it goes on without.
    svi.loss_and_grads = Trace_ELBO().loss_and_grads
    assert math.isfinite(svi.step(torch.ones(4)))


def test_a_branch():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = 1.0 if mu > 0 else 2.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, scale), obs=x)

    refused(model, r"test_compile_refused.py\", line \d+ reads the value of a tensor")


@pytest.mark.parametrize(
    "read", [float, lambda mu: mu.item(), lambda mu: float(mu.detach().numpy().sum()),
             lambda mu: mu.tolist(), lambda mu: float(np.asarray(mu.detach()).sum())],
    ids=["float", "item", "numpy", "tolist", "asarray"],
)  # fmt: skip
def test_a_number(read):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0 + read(mu) ** 2), obs=x)

    refused(model, r"test_compile_refused.py\", line \d+ reads the value of a tensor")


@pytest.mark.parametrize(
    "pick", [lambda x: x[x > -9.0], lambda x: x[x.nonzero()[:, 0]], torch.unique],
    ids=["mask", "nonzero", "unique"],
)  # fmt: skip
def test_a_shape(pick):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        picked = pick(x)
        with pyro.plate("data", len(picked)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=picked)

    refused(model, "makes a tensor whose shape depends on values")


@pytest.mark.parametrize("draw", [np.random.normal, random.random], ids=["numpy", "random"])
def test_random_numbers_from_elsewhere(draw):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu + draw(), 1.0), obs=x)

    refused(model, "draws from `numpy.random` or `random`")


@pytest.mark.parametrize(
    "draw", [lambda g: torch.rand((), generator=g), lambda g: torch.zeros(()).normal_(generator=g)]
)
def test_a_generator_of_its_own(draw):
    generator = torch.Generator()

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu + draw(generator), 1.0), obs=x)

    refused(model, r"test_compile_refused.py\", line \d+ draws with a generator of its own")


def test_a_plate_that_is_iterated_over():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 4, subsample_size=2):
            pyro.sample(f"x_{i}", dist.Normal(mu, 1.0), obs=x[i])

    refused(model, "The plate 'data' is iterated over")


def test_a_black_box():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        noise = Simulator(lambda rng, mu: mu, mu, event_shape=())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu + 0 * noise.sample(), 1.0), obs=x)

    refused(model, "compiled steps would record the draws")


def test_what_is_no_loss():
    with pytest.raises(TypeError, match="compiled takes a loss of this library or an ELBO"):
        compiled(conjugate)
