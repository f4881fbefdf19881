# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Nets in 16 bits: every loss agrees with its value in float32, and trains."""

import copy
import dataclasses
import math
from typing import NamedTuple

import every
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro_every import AS_IT_IS, COMPILED
from torch import nn

import pyro_spread
from pyro_spread import (
    KL,
    AdversarialDivergence,
    GaussianNoise,
    ImplicitDistribution,
    LowRankGaussianNoise,
    SpreadELBO,
    concat_sites,
    two_player,
)

NOISE = {"x": GaussianNoise(0.5)}
LOW_RANK = {"x": LowRankGaussianNoise(0.5, torch.ones(2, 1))}


class Setting:
    """Nets and programs over them, the same at every call."""

    def __init__(self):
        pyro.clear_param_store()
        torch.manual_seed(0)
        self.x = 1.5 + torch.randn(64, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.7]])
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        self.encoder = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
        self.critic = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        self.wide = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def model(self, x):
        decoder = pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(decoder(z), event_dim=1), obs=x)

    def likely(self, x):
        decoder = pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def empty(self, x):
        pass

    def normal(self, x):
        encoder = pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc = encoder(torch.cat([x, x], -1))
            pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))

    def implicit(self, x):
        encoder = pyro.module("encoder", self.encoder)

        def draw(eps):
            return encoder(torch.cat([x.expand(eps.shape), eps], -1))

        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(draw, base, (2,)))


def made(name):
    """A loss of the one list on this setting."""

    def make(s):
        loss = every.LOSSES[name]

        def critic(*names):
            return concat_sites(s.critic if names == ("x",) else s.wide, *names)

        model = s.likely if loss.likely else s.model
        return model, getattr(s, loss.guide), loss.make(pyro_spread, critic)

    return make


LOSSES = {name: made(name) for name in every.LOSSES} | {
    "spread mean field": lambda s: (s.model, s.normal, SpreadELBO(NOISE, TraceMeanField_ELBO())),
    "spread low rank": lambda s: (s.model, s.normal, SpreadELBO(LOW_RANK, Trace_ELBO())),
    "KL": lambda s: (s.model, s.empty, AdversarialDivergence(concat_sites(s.critic, "x"), KL())),
}
HAS_CRITIC = {*every.HAS_CRITIC, "KL"}


def grads_and_loss(name, dtype, how=AS_IT_IS):
    setting = Setting()
    model, guide, loss = LOSSES[name](setting)
    loss = how.made(loss)
    nets = nn.ModuleList([setting.decoder, setting.encoder, setting.critic, setting.wide])
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        for _ in range(1 + how.before):
            nets.zero_grad()
            pyro.set_rng_seed(1)
            value = loss.loss_and_grads(model, guide, setting.x)
        evaluated = loss.loss(model, guide, setting.x)
    return value, evaluated, [p.grad for p in nets.parameters()]


DEFAULT = ("spread low rank", "JS", "adaptive", "MMD")
CASES = [
    pytest.param(
        name,
        dtype,
        how,
        marks=[] if name in DEFAULT and is_quick else pytest.mark.slow,
        id=f"{name}-{dtype}" + "-compiled" * (how is COMPILED),
    )
    for name in LOSSES
    for dtype, how, is_quick in (
        (torch.bfloat16, AS_IT_IS, True),
        (torch.float16, AS_IT_IS, False),
        (torch.bfloat16, COMPILED, False),
    )
]


@pytest.mark.parametrize(("name", "dtype", "how"), CASES)
def test_values_and_gradients_are_near_those_of_float32(name, dtype, how):
    value, evaluated, grads = grads_and_loss(name, dtype, how)
    exact, exactly_evaluated, exact_grads = grads_and_loss(name, None)
    # Eight or eleven bits in the nets: activations are right to some 1 %, not sums over data.
    scale = max(abs(exact), abs(exactly_evaluated), 0.1)
    assert abs(value - exact) < 0.02 * scale
    assert abs(evaluated - exactly_evaluated) < 0.02 * scale
    pairs = [(a, b) for a, b in zip(grads, exact_grads, strict=True) if b is not None]
    assert any(bool((a != b).any()) for a, b in pairs)  # the nets did compute in 16 bits
    norm = torch.stack([g.norm() for g in exact_grads if g is not None]).norm()
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert (grad is None) == (exact_grad is None)
        if grad is not None:
            assert grad.dtype == torch.float32
            assert (grad - exact_grad).norm() < 0.05 * norm


@pytest.mark.slow
@pytest.mark.parametrize("name", [*every.TRAINS_MODEL, "KL"])
def test_training_moves_the_model_towards_the_data(name):
    setting = Setting()
    model, guide, loss = LOSSES[name](setting)
    adam = pyro.optim.Adam({"lr": 1e-2})
    if name in HAS_CRITIC:
        adam = two_player(adam, pyro.optim.Adam({"lr": 2e-2}), 2 if name == "Wasserstein" else 1)

    def distance():
        with torch.no_grad():
            draws = setting.decoder(torch.randn(1000, 2))
        return float((draws.mean(0) - setting.x.mean(0)).norm())

    before = distance()
    pyro.set_rng_seed(1)
    svi = SVI(model, loss.register(model, guide), adam, loss)
    with torch.autocast("cpu", torch.bfloat16):  # around the whole loop: nothing is cached
        for _ in range(300 if name in HAS_CRITIC else 50):
            svi.step(setting.x)
    assert distance() < 0.8 * before
    assert not torch.is_autocast_enabled("cpu")


def test_grad_scaler_with_a_torch_optimiser():
    setting = Setting()
    model, guide, loss = LOSSES["KL"](setting)
    module = loss(nn_program(model), nn_program(guide))
    params = [*module.parameters(), *setting.decoder.parameters()]
    before = copy.deepcopy(params)
    optim = torch.optim.Adam(params, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(3):
        optim.zero_grad()
        with torch.autocast("cpu", torch.float16):
            value = module(setting.x)
        scaler.scale(value).backward()
        scaler.step(optim)
        scaler.update()
    assert scaler.get_scale() == 2.0**10
    moved = [bool((a != b).any()) for a, b in zip(params, before, strict=True)]
    assert all(moved)


def nn_program(fn):
    class Program(nn.Module):
        def forward(self, *args):
            return fn(*args)

    return Program()


def test_programs_that_are_modules_keep_their_densities_in_float32():
    setting = Setting()
    _, _, loss = LOSSES["spread low rank"](setting)
    module = loss(nn_program(setting.model), nn_program(setting.normal))
    pyro.set_rng_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        value = module(setting.x)
    pyro.set_rng_seed(1)
    exact = module(setting.x)
    assert value.dtype == torch.float32
    assert abs(float(value - exact)) < 0.02 * abs(float(exact))


def test_only_nets_see_autocast():
    setting, seen = Setting(), []

    class Watched(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            seen.append(("net", torch.is_autocast_enabled("cpu"), y.dtype))
            return y

    setting.decoder = Watched(2, 2)

    def model(x):
        out = setting.decoder(torch.zeros(len(x), 2))
        seen.append(("model", torch.is_autocast_enabled("cpu"), out.dtype))
        setting.model(x)

    loss = SpreadELBO(NOISE)
    with torch.autocast("cpu", torch.bfloat16):
        loss.loss_and_grads(model, setting.normal, setting.x)
        assert torch.is_autocast_enabled("cpu")
    assert ("net", True, torch.bfloat16) in seen
    assert ("model", False, torch.float32) in seen
    assert not {("net", False, torch.float32), ("model", True, torch.bfloat16)} & set(seen)


class Moments(NamedTuple):
    loc: torch.Tensor
    rest: list


@dataclasses.dataclass
class Named:
    loc: torch.Tensor
    name: str = "encoder"


@pytest.mark.parametrize(
    ("packed", "unpacked"),
    [
        (lambda loc: Moments(loc, [loc]), lambda out: out.loc + 0 * out.rest[0]),
        (Named, lambda out: out.loc),
        (lambda loc: {"loc": (loc,)}, lambda out: out["loc"][0]),
    ],
)
def test_whatever_a_net_returns_is_widened(packed, unpacked):
    setting, seen = Setting(), []

    class Encoder(nn.Linear):
        def forward(self, x):
            return packed(super().forward(x))

    encoder = Encoder(2, 2)

    def guide(x):
        loc = unpacked(pyro.module("encoder", encoder)(x))
        seen.append(loc.dtype)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    with torch.autocast("cpu", torch.bfloat16):
        SpreadELBO(NOISE).loss_and_grads(setting.model, guide, setting.x)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("wrapped", ["model", "guide"])
def test_a_program_that_cannot_be_told_from_a_net_is_refused(wrapped):
    setting = Setting()
    model, guide = nn_program(setting.model), nn_program(setting.normal)
    model, guide = (
        (poutine.scale(model, 1.0), guide)
        if wrapped == "model"
        else (model, poutine.mask(guide, True))
    )
    loss = SpreadELBO(NOISE)
    refused = pytest.raises(ValueError, match="site 'z' is sampled inside of the forward")
    with torch.autocast("cpu", torch.bfloat16), refused:
        loss.loss_and_grads(model, guide, setting.x)
    assert not pyro.get_param_store()
    assert math.isfinite(loss.loss_and_grads(model, guide, setting.x))
