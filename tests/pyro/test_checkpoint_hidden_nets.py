# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Nets wherever a program may keep them: they are saved, or refused by name."""

import collections
import contextvars
import dataclasses
import functools
import itertools
import operator
import sys
import threading
import types
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from forged import forge
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_spread import (
    CheckpointError,
    GaussianNoise,
    SpreadELBO,
    finite_guard,
    load_checkpoint,
    save_checkpoint,
)

DATA = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) + 3
NETS = {}


def norm():
    # Its average is over all steps so far, so that it tells how many there were.
    return nn.BatchNorm1d(3, affine=False, momentum=None)


def build(net_of, loss=None):
    pyro.clear_param_store()

    def model(x):
        net = net_of()
        net(x)
        with pyro.plate("data", len(x)):
            loc = pyro.param("w", torch.zeros(3)) + net.running_mean.clone()
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    adam = pyro.optim.Adam({"lr": 0.1})
    return SVI(model, lambda x: None, adam, Trace_ELBO() if loss is None else loss)


def closure():
    net = norm()
    return lambda: net


def closure_of_a_closure():
    net = norm()

    def inner():
        return net

    return lambda: inner()


def imported_module():
    nets = types.ModuleType("nets")
    nets.norm = norm()
    return lambda: nets.norm


def module_in_a_module():
    nets = types.ModuleType("nets")
    nets.parts = types.ModuleType("nets.parts")
    nets.parts.norm = norm()
    return lambda: nets.parts.norm


def looked_up_module():
    sys.modules["hidden_nets_of_a_test"] = types.ModuleType("hidden_nets_of_a_test")
    sys.modules["hidden_nets_of_a_test"].norm = norm()
    return lambda: getattr(sys.modules["hidden_nets_of_a_test"], "norm")  # noqa: B009


def global_of_a_helper():
    NETS["norm"] = norm()

    def helper():
        return NETS["norm"]

    return lambda: helper()


def class_attribute():
    class Nets:
        net = norm()

    return lambda: Nets.net


def class_attribute_of_a_base():
    class Base:
        net = norm()

    class Nets(Base):
        pass

    nets = Nets()
    return lambda: nets.net


def global_of_a_method():
    NETS["method"] = norm()

    class Nets:
        def net(self):
            return NETS["method"]

    nets = Nets()
    return lambda: nets.net()


def a_property():
    held = [norm()]

    class Nets:
        @property
        def net(self):
            return held[0]

    nets = Nets()
    return lambda: nets.net


def a_static_method():
    held = [norm()]

    class Nets:
        @staticmethod
        def net():
            return held[0]

    return lambda: Nets.net()


def slots():
    class Nets:
        __slots__ = ("net",)

    nets = Nets()
    nets.net = norm()
    return lambda: nets.net


def a_dataclass():
    @dataclasses.dataclass(frozen=True)
    class Nets:
        net: nn.Module

    nets = Nets(norm())
    return lambda: nets.net


def a_namespace():
    nets = types.SimpleNamespace(net=norm())
    return lambda: nets.net


def a_deque():
    nets = collections.deque([norm()])
    return lambda: nets[0]


def a_long_list():
    nets = [norm() for _ in range(1001)]
    return lambda: nets[0]


def a_long_dict():
    nets = {i: norm() if i == 3 else i for i in range(2000)}
    return lambda: nets[3]


def a_key():
    nets = {norm(): 1}
    return lambda: next(iter(nets))


def an_array_of_objects():
    nets = np.array([norm(), None])
    return lambda: nets[0]


def deeply_nested():
    net = norm()
    nets = functools.reduce(lambda inner, _: [inner], range(30), net)
    return lambda: functools.reduce(lambda outer, _: outer[0], range(30), nets)


def a_partial():
    return functools.partial(operator.getitem, [norm()], 0)


def a_cache():
    @functools.cache
    def net():
        return norm()

    return lambda: net()


def an_iterator():
    nets = itertools.repeat(norm())
    return lambda: next(nets)


def a_generator():
    def forever():
        net = norm()
        while True:
            yield net

    nets = forever()
    return lambda: next(nets)


def a_weak_reference():
    NETS["weak"] = norm()
    net = weakref.ref(NETS["weak"])
    return lambda: net()


def a_weak_dict():
    NETS["weak dict"] = norm()
    nets = weakref.WeakValueDictionary(net=NETS["weak dict"])
    return lambda: nets["net"]


def a_context_variable():
    net = contextvars.ContextVar("net")
    net.set(norm())
    return lambda: net.get()


def a_thread():
    nets = threading.local()
    nets.net = norm()
    return lambda: nets.net


def a_mapping_proxy():
    nets = types.MappingProxyType({"net": norm()})
    return lambda: nets["net"]


PLACES = [
    closure,
    closure_of_a_closure,
    imported_module,
    module_in_a_module,
    looked_up_module,
    global_of_a_helper,
    class_attribute,
    class_attribute_of_a_base,
    global_of_a_method,
    a_property,
    a_static_method,
    slots,
    a_dataclass,
    a_namespace,
    a_deque,
    a_long_list,
    a_long_dict,
    a_key,
    an_array_of_objects,
    deeply_nested,
    a_partial,
    a_cache,
    an_iterator,
    a_generator,
    a_weak_reference,
    a_weak_dict,
    a_context_variable,
    a_thread,
    a_mapping_proxy,
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_net_is_found_wherever_it_is(tmp_path, place):
    svi = build(place())
    for i in range(4):
        svi.step(DATA + i)
    save_checkpoint(tmp_path, svi, 4)
    svi.step(DATA)
    wanted = pyro.param("w").detach().clone()
    svi = build(place())
    load_checkpoint(tmp_path, svi, DATA)
    svi.step(DATA)
    assert torch.equal(pyro.param("w").detach(), wanted)


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
