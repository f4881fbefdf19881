# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What every loss promises in Pyro, whatever it compares."""

import copy
import math

import pyro
import pytest
import torch
from every import LOSSES, OF_RUNS
from pyro_every import Problem
from torch import nn

every = pytest.mark.parametrize("name", LOSSES | OF_RUNS)


def params():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


@every
def test_a_step_trains_every_player_and_leaves_the_data(name):
    problem = Problem(name)
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


@every
def test_the_same_seed_gives_the_same_run(name):
    runs = []
    for _ in range(2):
        svi = (problem := Problem(name)).svi()
        runs.append([svi.step(problem.x) for _ in range(3)])
    assert runs[0] == runs[1]


@every
def test_evaluation_trains_nothing(name):
    problem = Problem(name)
    svi = problem.svi()
    svi.step(problem.x)
    before = params()
    assert math.isfinite(svi.evaluate_loss(problem.x))
    assert all(torch.equal(value, before[n]) for n, value in params().items())


@every
def test_the_module_holds_all_that_a_step_trains(name):
    problem = Problem(name)

    class Program(nn.Module):
        def __init__(self, fn, own):
            super().__init__()
            self.own, self.fn = own, fn

        def forward(self, x):
            return self.fn(x)

    module = problem.loss(
        Program(problem.model, problem.decoder), Program(problem.guide, problem.encoder)
    )
    module(problem.x).backward()
    trained = {id(p) for p in module.parameters() if p.grad is not None and p.grad.any()}
    expected = [problem.decoder] if problem.entry.trains_model else []
    expected += [problem.encoder] if problem.entry.guide != "empty" else []
    expected += [problem.critic] if problem.entry.has_critic else []
    for part in expected:
        # The last bias of a critic that is only compared may have no slope.
        assert {id(p) for p in list(part.parameters())[:3]} <= trained


@every
def test_an_error_in_the_model_is_the_users_own_and_leaves_nothing(name):
    problem = Problem(name)
    svi, problem.fails = problem.svi(), True
    known = set(pyro.get_param_store().keys())
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        svi.step(problem.x)
    assert set(pyro.get_param_store().keys()) == known
    problem.fails = False
    assert math.isfinite(svi.step(problem.x))


@every
def test_a_loss_can_be_copied(name):
    problem = Problem(name)
    twin = copy.deepcopy(problem.loss)
    assert type(twin) is type(problem.loss)
    assert math.isfinite(twin.loss(problem.model, problem.guide, problem.x))
