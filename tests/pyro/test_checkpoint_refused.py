# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What cannot be saved or resumed in Pyro is refused, and changes nothing."""

import dataclasses
import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from pyro_runs import X, adam, go, no_guide, plain, simple, start
from torch import nn

from pyro_spread import (
    CheckpointError,
    finite_guard,
    guard_status,
    load_checkpoint,
    save_checkpoint,
)
from pyro_spread._checkpoint_state import codec
from pyro_spread._reachable_modules import find_modules
from spread_core.checkpoint_file import checkpoints, write


def _nets(svi):
    return [net for _, net in find_modules(svi, None)]


def refused(path, svi, *args, match, **kwargs):
    before = everything_of(svi)
    with pytest.raises(CheckpointError, match=match) as error:
        load_checkpoint(path, svi, *args, **kwargs)
    assert everything_of(svi) == before
    assert "Nothing was loaded" in str(error.value)


def everything_of(svi):
    store = pyro.get_param_store()
    loss = getattr(svi.loss_and_grads, "__self__", None)
    torch.set_printoptions(precision=12, threshold=100_000)
    try:
        return repr(
            (
                {name: (param, param.grad) for name, param in store.named_parameters()},
                svi.optim.get_state(),
                torch.get_rng_state().tolist(),
                np.random.get_state(),
                random.getstate(),
                loss.get_state() if hasattr(loss, "get_state") else None,
                [list(net.buffers()) for net in _nets(svi) if not _is_lazy(net)],
            )
        )
    finally:
        torch.set_printoptions(profile="default")


def _is_lazy(net):
    return any(nn.parameter.is_lazy(tensor) for tensor in [*net.parameters(), *net.buffers()])


@pytest.fixture
def saved(tmp_path):
    svi = plain()
    go(svi, "Adam", 3)
    return save_checkpoint(tmp_path, svi, 3)


def test_another_optimizer(saved):
    pyro.clear_param_store()
    svi = SVI(simple, no_guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
    match = r"with the optimizer PyroOptim of Adam, but this SVI has PyroOptim of SGD"
    refused(saved, svi, X, match=match)
    assert not pyro.get_param_store()


def test_another_loss(saved):
    svi = SVI(simple, no_guide, adam(), TraceGraph_ELBO())
    refused(saved, svi, X, match="with the loss Trace_ELBO, but this SVI has TraceGraph_ELBO")


@pytest.mark.parametrize("fresh", [True, False])
def test_another_model(saved, fresh):
    def other(x):
        pyro.param("loc", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(pyro.param("other", x.new_zeros(())), 1.0).to_event(0), obs=x)

    pyro.clear_param_store()
    svi = SVI(lambda x: other(x.sum()), no_guide, adam(), Trace_ELBO())
    if not fresh:
        svi.step(X)
    match = r"other params .* lacks 'other'; it has 'scale', unknown here.*clear_param_store"
    refused(saved, svi, X, match=match)
    assert bool(pyro.get_param_store()) != fresh


@pytest.mark.parametrize(
    ("scale", "constraint", "match"),
    [
        (torch.ones(2), dist.constraints.positive, r"param 'scale' is float32\[\] .* float32\[2\]"),
        (torch.ones(()).double(), dist.constraints.positive, r"float32\[\] .* float64\[\] here"),
        (
            torch.ones(()),
            dist.constraints.real,
            "'scale' is _GreaterThan in the file, but _Real",
        ),
    ],
)
def test_params_that_differ(saved, scale, constraint, match):
    def other(x):
        loc = pyro.param("loc", torch.zeros(()))
        pyro.param("scale", scale, constraint=constraint)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    pyro.clear_param_store()
    refused(saved, SVI(other, no_guide, adam(), Trace_ELBO()), X, match=match)


def test_before_the_first_step_it_needs_arguments(saved):
    pyro.clear_param_store()
    match = r"not declared yet, .*TypeError.*load_checkpoint\(directory, svi, batch\)"
    refused(saved, plain(), match=match)
    assert not pyro.get_param_store()


def test_a_damaged_file_changes_nothing(saved):
    svi = plain()
    go(svi, "Adam", 1)
    newer = save_checkpoint(saved.parent, svi, 4)
    data = bytearray(newer.read_bytes())
    data[len(data) // 2] ^= 4
    newer.write_bytes(data)
    refused(saved.parent, svi, match=f"earlier one can be loaded by its path: {saved}")
    assert newer.read_bytes() == data
    assert load_checkpoint(saved, svi).step == 3


def test_a_net_with_other_buffers(tmp_path):
    svi = start("two players")
    go(svi, "two players", 2)
    save_checkpoint(tmp_path, svi, 2)
    svi.loss.__self__.discriminator.register_buffer("extra", torch.zeros(3))
    refused(tmp_path, svi, match=r"other buffers of nets .* lacks 'discriminator.extra'")


def hidden_net():
    net = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    # Behind an object of a library, which is not searched.
    holder = torch.autograd.graph.saved_tensors_hooks(net, net)

    def model(x):
        own = pyro.module("net", holder.pack_hook)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(own(x[:, None])[:, 0], 1.0), obs=x)

    return SVI(model, no_guide, adam(), Trace_ELBO()), net


def test_nets_that_are_not_found_are_asked_for(tmp_path):
    svi, net = hidden_net()
    svi.step(X)
    with pytest.raises(ValueError, match=r"params 'net\$\$\$0.weight'.*modules={'net': net}"):
        save_checkpoint(tmp_path / "run", svi, 1)
    assert not (tmp_path / "run").exists()
    save_checkpoint(tmp_path / "run", svi, 1, modules={"net": net})
    svi.step(X)
    wanted = net[1].running_mean.clone()
    pyro.clear_param_store()
    svi, net = hidden_net()
    load_checkpoint(tmp_path / "run", svi, X, modules={"net": net})
    assert not torch.equal(net[1].running_mean, wanted)
    svi.step(X)
    assert torch.equal(net[1].running_mean, wanted)


def test_params_of_an_earlier_net_are_found_out(tmp_path):
    def build():
        net = nn.Linear(1, 1)

        def model(x):
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(net(x[:, None])[:, 0], 1.0), obs=x)

        return SVI(model, no_guide, adam(), Trace_ELBO())

    build().step(X)
    svi = build()  # in the same store
    svi.step(X)
    with pytest.raises(ValueError, match=r"earlier net, call pyro.clear_param_store\(\) first"):
        save_checkpoint(tmp_path, svi, 1)


def test_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match=r"param store is empty, .*take one step of the SVI first"):
        save_checkpoint(tmp_path / "run", plain(), 0)
    assert not (tmp_path / "run").exists()


def test_local_params_are_refused(tmp_path):
    svi = SVI(simple, no_guide, adam(), Trace_ELBO())
    svi.step(X)
    svi.optim([torch.ones((), requires_grad=True)])
    with pytest.raises(ValueError, match="params that are not in the param store"):
        save_checkpoint(tmp_path, svi, 1)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"net": nn.Linear(1, 1)}, r"metadata/net cannot be saved: torch.nn.*Linear"),
        ([torch.ones(2).to_sparse()], "metadata/0 cannot be saved: .*sparse"),
        (torch.ones(2, dtype=torch.complex128), "no place for torch.complex128"),
        (np.array(["a"]), "no place for <U1"),
    ],
)
def test_what_cannot_be_saved(tmp_path, metadata, match):
    svi = plain()
    svi.step(X)
    with pytest.raises(TypeError, match=match):
        save_checkpoint(tmp_path / "run", svi, 1, metadata=metadata)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "dtype", ["bool", "bfloat16", "float16", "float64", "int8", "uint32", "complex64"]
)
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
def test_metadata_of_every_type(tmp_path, dtype, shape):
    svi = plain()
    svi.step(X)
    value = torch.ones(shape).to(getattr(torch, dtype))
    save_checkpoint(tmp_path, svi, 1, metadata={"t": value, "n": np.float64(0.5)})
    found = load_checkpoint(tmp_path, svi).metadata
    assert found["t"].dtype == value.dtype
    assert torch.equal(found["t"], value)
    assert type(found["n"]) is np.float64


def test_a_checkpoint_that_is_kept_out_of_nothing_else(tmp_path):
    svi = plain()
    for step in range(5):
        svi.step(X)
        save_checkpoint(tmp_path, svi, step, keep=2)
    assert [path.name[9:] for path in checkpoints(tmp_path)] == [
        "step-3.safetensors",
        "step-4.safetensors",
    ]


@pytest.mark.parametrize("function", [save_checkpoint, load_checkpoint])
def test_an_svi_is_asked_for(tmp_path, function):
    arguments = (tmp_path, plain) if function is load_checkpoint else (tmp_path, plain, 1)
    with pytest.raises(TypeError, match=r"`svi` must be a pyro.infer.SVI, got function"):
        function(*arguments)


def test_versions_of_libraries(tmp_path, monkeypatch):
    svi = plain()
    svi.step(X)
    save_checkpoint(tmp_path, svi, 1)
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.warns(UserWarning, match=r"other library versions \(torch .*, now 1.0\)"):
        assert load_checkpoint(tmp_path, svi).step == 1


def test_a_warning_that_is_an_error_comes_before_the_load(saved, monkeypatch):
    svi = plain()
    svi.step(X)
    monkeypatch.setattr(torch, "__version__", "1.0")
    before = everything_of(svi)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="other library versions"):
            load_checkpoint(saved, svi)
    assert everything_of(svi) == before


class Counting(Trace_ELBO):
    """A loss with a state of its own, which it does not always take back."""

    count, accepts = 0, True

    def get_state(self):
        return {"count": self.count}

    def set_state(self, state):
        if not self.accepts:
            raise RuntimeError("not now")
        self.count = state["count"]


class Extra(nn.Linear):
    def __init__(self, name):
        super().__init__(1, 1)
        self.name, self.extra, self.accepts = name, 0, True

    def get_extra_state(self):
        return {"extra": self.extra}

    def set_extra_state(self, state):
        self.extra = state["extra"]
        if not self.accepts:
            raise RuntimeError("not now")


@pytest.mark.parametrize("culprit", ["loss", "module"])
def test_a_load_that_fails_late_changes_nothing(tmp_path, culprit):
    pyro.clear_param_store()
    first, second, loss = Extra("first"), Extra("second"), Counting()

    def model(x):
        loc = pyro.module("first", first)(x[:, None]) + pyro.module("second", second)(x[:, None])
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc[:, 0], 1.0), obs=x)

    svi = finite_guard(SVI(model, no_guide, adam(), loss), "skip")
    svi.step(X)
    save_checkpoint(tmp_path, svi, 1)
    for _ in range(4):
        svi.step(X)
    svi.step(torch.full_like(X, float("nan")))
    first.extra = second.extra = loss.count = 5

    def seen():
        return everything_of(svi), first.extra, second.extra, loss.count, guard_status(svi).skipped

    before = seen()
    (loss if culprit == "loss" else second).accepts = False
    with pytest.raises(RuntimeError, match="not now"):
        load_checkpoint(tmp_path, svi)
    loss.accepts = second.accepts = True
    assert seen() == before
    load_checkpoint(tmp_path, svi)
    assert (first.extra, second.extra, loss.count, guard_status(svi).skipped) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("nonsense", torch.float32), ("numpy", torch.bfloat16)]
)
def test_arrays_of_no_known_kind(tmp_path, kind, dtype):
    tensor = torch.ones(2, dtype=dtype)
    sealed = dataclasses.replace(codec(), to_tensor=lambda where, value: (kind, tensor))
    write(sealed, tmp_path, 1, {"params": X}, None, {}, None)
    with pytest.raises(CheckpointError, match=f"malformed, there is no array of kind '{kind}'"):
        load_checkpoint(tmp_path, plain(), X)


def test_a_guard_that_the_saved_run_did_not_have(saved):
    refused(saved, finite_guard(plain()), X, match="load first, and guard the run after that")
    svi = plain()
    load_checkpoint(saved, svi, X)
    finite_guard(svi).step(X)


def test_a_load_that_fails_is_no_bad_step(tmp_path):
    svi = finite_guard(plain(), "skip")
    go(svi, "Adam", 1)
    save_checkpoint(tmp_path, svi, 1)
    pyro.clear_param_store()
    svi = finite_guard(plain(), "skip")
    with pytest.raises(CheckpointError, match="other params than this SVI's"):
        load_checkpoint(tmp_path, svi, torch.full_like(X, float("nan")))
    assert guard_status(svi).skipped == 0
