# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A param under other bounds is another param: the file says its constraint in full."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from forged import forge
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import constraints

from pyro_spread import CheckpointError, load_checkpoint, save_checkpoint

X = torch.tensor(1.0)


def build(constraint, value=(0.6,)):
    pyro.clear_param_store()

    def model(x):
        a = pyro.param("a", torch.tensor(value), constraint=constraint)
        pyro.sample("x", dist.Normal(a.sum(), 1.0), obs=x)

    return SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())


def interval(*bounds):
    return constraints.interval(*bounds)


CHANGED = {
    "upper": (interval(0.0, 1.0), interval(0.0, 10.0), "Interval.*=1.* Interval.*upper_bound=10"),
    "lower": (constraints.greater_than(0.0), constraints.greater_than(0.5), "bound=0.*bound=0.5"),
    "named": (constraints.positive, constraints.greater_than(0.5), "bound=0.*bound=0.5"),
    "tensor": (
        interval(torch.zeros(2), torch.ones(2)),
        interval(torch.zeros(2), torch.tensor([1.0, 2.0])),
        r"upper_bound=\[1, 1\].*upper_bound=\[1, 2\]",
    ),
    "many": (
        interval(0.0, torch.ones(2, 1)),
        interval(0.0, torch.full((2, 1), 2.0)),
        r"values of shape \[2, 1\].* but one with other values here",
    ),
    "independent": (
        constraints.independent(interval(0.0, 1.0), 1),
        constraints.independent(interval(0.0, 2.0), 1),
        "base_constraint=Interval.*upper_bound=1.*upper_bound=2",
    ),
    "parts": (
        constraints.cat([constraints.positive, interval(0.0, 1.0)], lengths=[1, 1]),
        constraints.cat([constraints.positive, interval(0.0, 3.0)], lengths=[1, 1]),
        "cseq=.*upper_bound=1.*upper_bound=3",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_other_bounds_are_refused(tmp_path, name):
    saved, live, match = CHANGED[name]
    svi = build(saved, (0.6, 0.7))
    svi.step(X)
    save_checkpoint(tmp_path, svi, 1)
    svi = build(live, (0.6, 0.7))
    svi.step(X)
    before = pyro.param("a").detach().clone()
    with pytest.raises(
        CheckpointError, match=f"constraint of param 'a' is .*{match}.*as the saved"
    ):
        load_checkpoint(tmp_path, svi)
    assert torch.equal(pyro.param("a"), before)
    svi = build(saved, (0.6, 0.7))
    assert load_checkpoint(tmp_path, svi, X).step == 1


def test_numbers_and_tensors_give_equal_bounds(tmp_path):
    svi = build(interval(0.0, 1.0))
    svi.step(X)
    save_checkpoint(tmp_path, svi, 1)
    value = pyro.param("a").detach().clone()
    svi = build(interval(torch.tensor(0.0), 1))
    load_checkpoint(tmp_path, svi, X)
    assert torch.equal(pyro.param("a"), value)


def test_files_without_bounds_are_those_of_earlier_versions(tmp_path):
    svi = build(interval(0.0, 1.0))
    svi.step(X)
    file = save_checkpoint(tmp_path, svi, 1)
    forge(file, lambda content: content["state"]["params"]["a"].pop("bounds"))
    svi = build(interval(0.0, 1.0))
    assert load_checkpoint(tmp_path, svi, X).step == 1


@pytest.mark.parametrize("wrong", [None, 3, [], {"is": 3}, {"is": "Interval", "lower_bound": "x"}])
def test_bounds_that_are_none(tmp_path, wrong):
    svi = build(interval(0.0, 1.0))
    svi.step(X)
    file = save_checkpoint(tmp_path, svi, 1)
    forge(file, lambda content: content["state"]["params"]["a"].update(bounds=wrong))
    with pytest.raises(CheckpointError, match="constraint of param 'a'"):
        load_checkpoint(tmp_path, svi)
