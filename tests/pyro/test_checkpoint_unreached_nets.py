# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A net that steps call and nothing leads to is refused, with the way out."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from forged import forge
from pyro.infer import SVI, Trace_ELBO
from pyro_kept_nets import DATA, a_dataclass, a_deque, build, norm
from torch import nn

from pyro_spread import (
    CheckpointError,
    GaussianNoise,
    SpreadELBO,
    finite_guard,
    load_checkpoint,
    save_checkpoint,
)


def out_of_sight():
    """Behind an object of a library, which is not searched."""
    net = norm()
    holder = torch.autograd.graph.saved_tensors_hooks(net, net)
    return lambda: holder.pack_hook


WAY_OUT = r"a step calls BatchNorm1d\(3, .*\('running_mean', .*modules={'net': net}"


@pytest.mark.parametrize("loss", ["own", "guarded", "looked for a checkpoint"])
def test_a_net_that_steps_call_and_nothing_leads_to_is_refused(tmp_path, loss):
    svi = build(out_of_sight(), SpreadELBO({"x": GaussianNoise(0.5)}) if loss == "own" else None)
    if loss == "guarded":
        finite_guard(svi)
    if loss == "looked for a checkpoint":
        with pytest.raises(FileNotFoundError):
            load_checkpoint(tmp_path, svi, DATA)
    svi.step(DATA)
    with pytest.raises(ValueError, match=WAY_OUT):
        save_checkpoint(tmp_path, svi, 1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=WAY_OUT):  # any other net does not help
        save_checkpoint(tmp_path, svi, 1, modules={"net": norm()})


def test_under_a_loss_of_pyro_it_is_refused_from_the_second_save_and_at_the_load(tmp_path):
    net_of = out_of_sight()
    svi = build(net_of)
    svi.step(DATA)
    save_checkpoint(tmp_path, svi, 1)  # nobody has seen a step so far
    svi.step(DATA)
    with pytest.raises(ValueError, match=WAY_OUT):
        save_checkpoint(tmp_path, svi, 2)
    save_checkpoint(tmp_path, svi, 2, modules={"net": net_of()})
    again = build(out_of_sight())
    with pytest.raises(CheckpointError, match=WAY_OUT):
        load_checkpoint(tmp_path / "00000001-step-1.safetensors", again, DATA)
    assert not pyro.get_param_store()
    other = out_of_sight()
    again = build(other)
    load_checkpoint(tmp_path, again, DATA, modules={"net": other()})
    assert torch.equal(other().running_mean, net_of().running_mean)


def test_a_net_that_a_step_makes_for_itself_is_nobody_s_to_keep(tmp_path):
    svi = build(norm)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path, svi, DATA)
    svi.step(DATA)
    save_checkpoint(tmp_path, svi, 1)


def test_a_net_without_state_is_no_matter(tmp_path):
    holder = torch.autograd.graph.saved_tensors_hooks(nn.ReLU(), len)

    def model(x):
        with pyro.plate("data", len(x)):
            loc = holder.pack_hook(pyro.param("w", torch.ones(3)))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    pyro.clear_param_store()
    svi = finite_guard(SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()))
    svi.step(DATA)
    save_checkpoint(tmp_path, svi, 1)


def test_files_that_do_not_have_such_nets_are_those_of_earlier_versions(tmp_path):
    svi = build(a_deque())
    svi.step(DATA)
    file = save_checkpoint(tmp_path, svi, 1)

    def as_before(content):
        assert set(content["state"]["further_modules"]) == set(content["state"]["modules"])
        content["state"]["modules"].clear()
        del content["state"]["further_modules"]

    forge(file, as_before)
    svi = build(a_deque())
    with pytest.warns(UserWarning, match=r"a version that did not keep '.*running_mean'.*bit for"):
        assert load_checkpoint(tmp_path, svi, DATA).step == 1


def test_such_a_net_that_the_program_no_longer_has(tmp_path):
    svi = build(a_deque())
    svi.step(DATA)
    save_checkpoint(tmp_path, svi, 1)
    svi = build(norm)
    with pytest.warns(UserWarning, match=r"holds '.*running_mean'.*do not lead here.*left out"):
        load_checkpoint(tmp_path, svi, DATA)


def test_another_net_of_that_place_is_refused(tmp_path):
    svi = build(a_deque())
    svi.step(DATA)
    save_checkpoint(tmp_path, svi, 1)
    svi = build(a_dataclass())
    with pytest.raises(CheckpointError, match=r"it lacks '.*running_mean'"), pytest.warns():
        load_checkpoint(tmp_path, svi, DATA)
