# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What every loss promises in Pyro, whatever it compares."""

import copy
import math

import numpy as np
import pyro
import pytest
import torch
from every import LOSSES, OF_RUNS
from pyro_every import AS_IT_IS, COMPILED, Problem, eager_and_compiled
from torch import nn

ALL = LOSSES | OF_RUNS
every = eager_and_compiled(ALL, quick=("spread", "JS.1 spread"))


def params():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


@every
def test_a_step_trains_every_player_leaves_the_data_and_can_be_evaluated(name, how):
    problem = Problem(name, how)
    data, svi = problem.x.clone(), problem.svi()
    svi.step(problem.x)
    before = params()
    assert math.isfinite(svi.step(problem.x))
    assert torch.equal(problem.x, data)
    moved = {n for n, value in params().items() if not torch.equal(value, before[n])}
    players = ["decoder"] if problem.entry.trains_model else []
    players += ["encoder"] if problem.entry.guide != "empty" else []
    players += ["discriminator"] if problem.entry.has_critic else []
    assert {n.partition("$$$")[0].partition(".")[0] for n in moved} == set(players)
    before = params()
    assert math.isfinite(svi.evaluate_loss(problem.x))
    assert all(torch.equal(value, before[n]) for n, value in params().items())


@eager_and_compiled(ALL, quick=ALL)
def test_the_same_seed_gives_the_same_run(name, how):
    runs = []
    for each in (AS_IT_IS, how):
        svi = (problem := Problem(name, each)).svi()
        pyro.set_rng_seed(3)
        runs.append([svi.step(problem.x) for _ in range(4)])
        runs[-1] += [value.numpy() for value in params().values()]
    for one, other in zip(*runs, strict=True):
        if how is COMPILED:
            assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
        else:
            np.testing.assert_array_equal(one, other)
    if how is COMPILED:
        assert [len(one._steps._graphs) for one in problem.loss._compiled_steps.values()] == [1]


class Program(nn.Module):
    """A function as a module."""

    def __init__(self, fn, own):
        super().__init__()
        self.own, self.fn = own, fn

    def forward(self, x):
        return self.fn(x)


@every
def test_the_module_holds_all_that_a_step_trains(name, how):
    runs = []
    for each in (AS_IT_IS, how)[how is AS_IT_IS :]:
        problem = Problem(name, each)
        module = problem.loss(
            Program(problem.model, problem.decoder), Program(problem.guide, problem.encoder)
        )
        for _ in range(1 + how.before):
            module.zero_grad()
            loss = module(problem.x)
            loss.backward()
        grads = [0.0 if p.grad is None else p.grad.numpy() for p in module.parameters()]
        runs.append([float(loss.detach()), *grads])
    for values in zip(*runs, strict=True):
        assert values[-1] == pytest.approx(values[0], rel=1e-5, abs=1e-6)
    trained = {id(p) for p in module.parameters() if p.grad is not None and p.grad.any()}
    expected = [problem.decoder] if problem.entry.trains_model else []
    expected += [problem.encoder] if problem.entry.guide != "empty" else []
    expected += [problem.critic] if problem.entry.has_critic else []
    for part in expected:
        # The last bias of a critic that is only compared may have no slope.
        assert {id(p) for p in list(part.parameters())[:3]} <= trained


@every
def test_an_error_in_the_model_is_the_users_own_and_leaves_nothing(name, how):
    problem = Problem(name, how)
    svi = problem.svi()
    # Compiled, also where the step is recorded; of a table the model is not run any more.
    for _ in range(1 if name == "joint KL of a table" else max(how.before, 1)):
        before, problem.fails = params(), True
        with pytest.raises(RuntimeError, match="the user's own mistake"):
            svi.step(problem.x)
        assert params().keys() == before.keys()
        assert all(torch.equal(value, before[n]) for n, value in params().items())
        problem.fails = False
        assert math.isfinite(svi.step(problem.x))


@every
def test_a_loss_can_be_copied(name, how):
    problem = Problem(name, how)
    twin = copy.deepcopy(problem.loss)
    assert type(twin) is type(problem.loss)
    assert math.isfinite(twin.loss(problem.model, problem.guide, problem.x))
