# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Nets wherever a program may keep them: they are saved, or refused by name."""

import contextvars
import functools
import itertools
import operator
import sys
import threading
import types
import weakref

import numpy as np
import pyro
import pytest
import torch
from pyro_kept_nets import DATA, a_dataclass, a_deque, build, norm

from pyro_spread import load_checkpoint, save_checkpoint

NETS = {}


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


def a_namespace():
    nets = types.SimpleNamespace(net=norm())
    return lambda: nets.net


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
