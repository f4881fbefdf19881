# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Simulators round black boxes inside of Pyro: plates, handlers, copies, devices, tracing."""

import copy
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive

from pyro_spread import KL, JointContrastELBO, Simulator


def walk(rng, drift, start):
    """Of shape (n, 2), from a drift of shape (n,) and starts of shape (n, 2)."""
    walk.runs.append(len(drift))
    return start + drift[:, None] + rng.normal(size=(len(drift), 2))


walk.runs = []


def model(x=None):
    theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1):
        walker = Simulator(walk, 0.5, theta, event_shape=(2,), arg_event_dims=(0, 1))
        return pyro.sample("x", walker, obs=x)


@pytest.fixture(autouse=True)
def seeded():
    pyro.set_rng_seed(0)
    walk.runs.clear()


def test_plates_and_predictive_draw_afresh():
    values = model()
    assert values.shape == (3, 4, 2)
    assert walk.runs == [12]  # one call for all plates
    assert len(set(values.flatten().tolist())) == 24
    for parallel, runs in ((False, [12] * 5), (True, [60])):
        walk.runs.clear()
        x = Predictive(model, num_samples=5, parallel=parallel)()["x"]
        assert x.shape == (5, 3, 4, 2)
        assert len(set(x.flatten().tolist())) == 120
        assert walk.runs[-len(runs) :] == runs


def test_vectorized_particles_are_one_call():
    with pyro.plate("particles", 6, dim=-3):
        traced = poutine.trace(poutine.uncondition(model)).get_trace(torch.zeros(3, 4, 2))
    # theta is drawn for each particle, and the vector stays one argument.
    assert traced.nodes["theta"]["value"].shape == (6, 1, 1, 2)
    assert traced.nodes["x"]["value"].shape == (6, 3, 4, 2)
    assert walk.runs == [72]


def test_the_seed_is_pyros():
    first = model()
    pyro.set_rng_seed(0)
    assert torch.equal(model(), first)
    np.random.seed(0)  # NumPy's own generator has no part in it
    assert not torch.equal(model(), first)


def test_copies():
    fn = Simulator(walk, torch.zeros(5), torch.ones(2), event_shape=(2,), arg_event_dims=(0, 1))
    for twin in (copy.deepcopy(fn), pickle.loads(pickle.dumps(fn)), fn.expand((5,))):
        torch.manual_seed(0)
        expected = fn.sample()
        torch.manual_seed(0)
        assert torch.equal(twin.sample(), expected)


def test_draws_have_no_gradient():
    drift = torch.zeros(5, requires_grad=True)
    fn = Simulator(walk, drift, torch.ones(2), event_shape=(2,), arg_event_dims=(0, 1))
    assert not fn.sample().requires_grad
    assert drift.grad is None
    with pytest.raises(NotImplementedError):
        fn.rsample()


def test_narrow_arguments_are_widened():
    narrow = torch.zeros(5, dtype=torch.bfloat16)
    fn = Simulator(walk, narrow, torch.ones(2), event_shape=(2,), arg_event_dims=(0, 1))
    assert fn.sample().dtype == torch.float32


def test_numbers_lie_where_the_tensors_do():
    fn = Simulator(walk, 0.5, torch.ones(2, device="meta"), event_shape=(2,), arg_event_dims=(0, 1))
    assert {arg.device.type for arg in fn.args} == {"meta"}


def test_tracing_is_refused():
    fn = Simulator(walk, torch.zeros(5), torch.ones(2), event_shape=(2,), arg_event_dims=(0, 1))
    with pytest.raises(NotImplementedError, match="would record the draws of one call"):
        torch.jit.trace(lambda x: x + fn.sample(), torch.zeros(5, 2))


def test_a_compiled_function_draws_outside_of_the_graph():
    fn = Simulator(walk, torch.zeros(5), torch.ones(2), event_shape=(2,), arg_event_dims=(0, 1))
    draw = torch.compile(lambda: fn.sample() + 1, backend="eager")
    assert not torch.equal(draw(), draw())


def test_a_model_with_vectors_trains_a_guide():
    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("theta", dist.Normal(loc, 1.0).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), JointContrastELBO(divergence=KL()))
    assert np.isfinite([svi.step(torch.zeros(3, 4, 2)) for _ in range(3)]).all()
    assert pyro.param("loc").abs().sum() > 0
