# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A compiled loss does what the loss does: the same numbers, the same errors, at every step."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro_every import Problem
from pyro_stock_models import MODELS
from torch import nn

from pyro_spread import (
    KL,
    AutoAmortized,
    AutoImplicit,
    JointContrastELBO,
    PriorContrastELBO,
    compiled,
    concat_sites,
    two_player,
)

# Run by PyTorch's own operations: what inductor makes of a graph is not this library's.
AS_IT_IS = functools.partial(compiled, backend="eager")
COUNT = 4
WITH_DATA = {AutoAmortized: {"observed": "x"}}


def adam(lr=1e-2):
    return pyro.optim.Adam({"lr": lr})


def graphs(loss):
    """How many graphs a compiled loss has for SVI."""
    return sum(len(one._steps._graphs) for one in loss._compiled_steps.values())


def run(svi, *args, count=COUNT):
    pyro.set_rng_seed(3)
    losses = [svi.step(*args) for _ in range(count)]
    return losses, {n: p.detach().clone() for n, p in pyro.get_param_store().items()}


def assert_alike(one, other, tolerance=1e-6):
    assert one[0] == pytest.approx(other[0], rel=tolerance, abs=tolerance)
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], rtol=10 * tolerance, atol=tolerance)


STOCK = {
    "trace": infer.Trace_ELBO,
    "particles": lambda: infer.Trace_ELBO(num_particles=3, vectorize_particles=True),
    "graph": infer.TraceGraph_ELBO,
    "mean field": infer.TraceMeanField_ELBO,
    "renyi": lambda: infer.RenyiELBO(num_particles=2),
    "enum": lambda: infer.TraceEnum_ELBO(max_plate_nesting=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_of_stock_elbos(name):
    compare_stock(name, STOCK["trace"])


@pytest.mark.parametrize("elbo", STOCK)
def test_stock_elbos(elbo):
    compare_stock("local", STOCK[elbo])


def compare_stock(name, elbo):
    model, x = MODELS[name]
    program = functools.partial(model, like=lambda loc: dist.Normal(loc, 0.5))
    runs = []
    for how in (lambda loss: loss, AS_IT_IS):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss = how(elbo())
        args = x if isinstance(x, tuple) else (x,)
        runs.append(run(SVI(program, AutoNormal(program), adam(), loss), *args))
    assert graphs(loss) == 1
    assert_alike(*runs, tolerance=1e-10)


def in_one_plate(x=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(mu, 0.5), obs=x)


def amortised_kl():
    return JointContrastELBO(divergence=KL(), num_particles=8, vectorize_particles=True)


@pytest.mark.parametrize(
    ("guide", "loss"),
    [
        (AutoAmortized, amortised_kl),
        (AutoAmortized, infer.Trace_ELBO),
        (AutoImplicit, lambda: PriorContrastELBO(concat_sites(nn.Linear(1, 1), "_auto_latent"))),
    ],
)
def test_guides_of_this_library(guide, loss):
    runs = []
    for how in (lambda loss: loss, AS_IT_IS):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        programs = in_one_plate, guide(in_one_plate, **WITH_DATA.get(guide, {}))
        players = two_player(adam(), adam()) if guide is AutoImplicit else adam()
        runs.append(run(SVI(*programs, players, how(loss())), torch.ones(5)))
    assert_alike(*runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spread", "JS", "plain", "joint"])
def test_inductor_with_the_same_random_numbers(name):
    runs = []
    for how in (lambda loss: loss, compiled):
        problem = Problem(name)
        problem.loss = how(problem.loss)
        runs.append(run(problem.svi(), problem.x))
    assert_alike(*runs, tolerance=1e-5)
