# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Whatever stands in a well-sealed file: a refusal changes nothing, or the run goes on."""

import random
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from forged import content_of, forgeries
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_spread import (
    CheckpointError,
    PriorContrastELBO,
    concat_sites,
    finite_guard,
    load_checkpoint,
    save_checkpoint,
    two_player,
)

X = torch.linspace(-1.0, 1.0, 4)[:, None]


def regression():
    net = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))

    def model(x):
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.interval(0.1, 9.0))
        mean = pyro.module("net", net)(x)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)

    decay = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1, "momentum": 0.9}, "gamma": 0.9}
    return SVI(model, lambda x: None, pyro.optim.ExponentialLR(decay), Trace_ELBO())


def adam():
    def model(x):
        a, b = pyro.param("a", torch.zeros(())), pyro.param("b", torch.zeros(3))
        pyro.sample("x", dist.Normal(a + b.sum(), 1.0).expand(x.shape).to_event(2), obs=x)

    return SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1, "amsgrad": True}), Trace_ELBO())


def contrast():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(2), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(())), 1.0))

    critic = concat_sites(nn.Linear(1, 1), "z")
    optim = two_player(pyro.optim.Adam({"lr": 0.1}), pyro.optim.RMSprop({"lr": 0.1}), ema=0.9)
    loss = PriorContrastELBO(critic, annealing=6, num_moment_draws=4)
    return finite_guard(SVI(model, guide, optim, loss), "reduce")


BUILDS = {"regression": regression, "adam": adam, "contrast": contrast}


def held(svi):
    """All that a load may change, as bytes."""
    store, loss = pyro.get_param_store(), getattr(svi.loss, "__self__", svi.loss)
    tensors = [t for p in store._params.values() for t in (p, p.grad) if t is not None]
    plain, state = [], [svi.optim.get_state()]
    while state:
        value = state.pop()
        if isinstance(value, dict):
            plain.append(list(map(str, value)))
            state += value.values()
        elif isinstance(value, list | tuple):
            state += value
        else:
            (tensors if isinstance(value, torch.Tensor) else plain).append(value)
    nets = [svi.model.__closure__] if getattr(svi.model, "__closure__", None) else []
    buffers = [b for cells in nets for c in cells for b in _buffers(c.cell_contents)]
    own = loss.get_state() if hasattr(loss, "get_state") else None
    randoms = torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()
    whole = [t.detach().numpy().tobytes() for t in [*tensors, *buffers]]
    return whole, repr(plain), list(store), own, randoms


def _buffers(value):
    return value.buffers() if isinstance(value, nn.Module) else ()


def check(name, few):
    """One change at every place, or at some of them."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = BUILDS[name]()
    for _ in range(2):
        svi.step(X)
    file = save_checkpoint(tempfile.mkdtemp(), svi, 2, metadata={"n": np.arange(3.0), "t": (1, 2)})
    good = file.read_bytes()
    content, sealed = content_of(good)
    arrays = [
        {"!": "tensor", "kind": "numpy", "name": "metadata/n"},
        {"!": "tensor", "kind": "torch", "name": next(iter(_named(content["state"]["params"])))},
    ]
    cases = list(forgeries(content, arrays))
    if few:
        cases = random.Random(1).sample(cases, few)
    odd, refused = [], 0
    for word, make in cases:
        file.write_bytes(sealed(make()))
        before = held(svi)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_checkpoint(file, svi)
            except CheckpointError as error:
                refused += 1
                if held(svi) != before:
                    odd.append(f"{word}: refused, and something changed")
                if len(str(error)) > 1000:
                    odd.append(f"{word}: {len(str(error))} characters")
                continue
            except Exception as error:
                odd.append(f"{word}: {type(error).__name__}: {str(error)[:80]}")
                continue
            try:
                svi.step(X)
                if hasattr(svi.optim, "step"):
                    svi.optim.step()
                save_checkpoint(Path(tempfile.mkdtemp()), svi, 3)
            except Exception as error:
                odd.append(f"{word}: loaded, then {type(error).__name__}: {str(error)[:80]}")
        file.write_bytes(good)
        load_checkpoint(file, svi)
    assert not odd, f"{len(odd)} of {len(cases)}\n" + "\n".join(odd[:40])
    assert refused > len(cases) // 2


def _named(value):
    if isinstance(value, dict):
        if value.get("!") == "tensor":
            yield value["name"]
        else:
            for item in value.values():
                yield from _named(item)


@pytest.mark.parametrize("name", BUILDS)
def test_some_changes(name):
    check(name, 120)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
def test_every_change(name):
    check(name, None)
