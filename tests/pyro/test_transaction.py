# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""A step of Pyro's SVI is done as a whole or not at all, whatever ends it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from every import LOSSES, WITH_NOISE
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from pyro_every import AS_IT_IS, eager_and_compiled
from torch import nn

import pyro_spread
from pyro_spread import (
    AdversarialDivergence,
    ImplicitDistribution,
    averaged_params,
    concat_sites,
    finite_guard,
    guard_status,
    two_player,
)

LISTED = LOSSES | WITH_NOISE
X = torch.linspace(-1.0, 2.0, 12).reshape(6, 2)


class Stop(nn.Module):
    """Raises where it stands, in the forward or in the backward pass."""

    def __init__(self):
        super().__init__()
        self.forwards = self.backwards = None

    def forward(self, x):
        if self.forwards is not None:
            raise self.forwards
        if x.requires_grad:
            x.register_hook(self.backward)
        return x

    def backward(self, grad):
        if self.backwards is not None:
            raise self.backwards


class Averaging(nn.Module):
    """Keeps a running average, for inputs of any shape."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.mean.lerp_(x.detach().mean(), 0.1)
        return x


class Halting(torch.optim.Adam):
    """Adam that moves a param and raises then, after some more of them."""

    left, error = 0, None

    def step(self, closure=None):
        super().step(closure)
        if Halting.error is not None:
            Halting.left -= 1
            if Halting.left < 0:
                raise Halting.error


def halting(**options):
    return PyroOptim(Halting, {"lr": 0.05, **options})


def decaying():
    return pyro.optim.ExponentialLR({"optimizer": Halting, "optim_args": {"lr": 0.1}, "gamma": 0.5})


class Counting(PyroOptim):
    """An optimiser of the user's own, with state of its own and a schedule."""

    def __init__(self):
        super().__init__(Halting, {"lr": 0.05})
        self.calls, self.norms, self.mean = 0, [], torch.zeros(())

    def __call__(self, params, *args, **kwargs):
        params = list(params)
        self.calls += 1
        self.norms.append(self.calls)
        self.mean.add_(1.0)
        super().__call__(params, *args, **kwargs)


OPTIMISERS = {
    "adam": halting,
    "schedule": decaying,
    "two players": lambda: two_player(halting(), halting(betas=(0.5, 0.9)), ema=0.9),
    "two steps": lambda: two_player(decaying(), halting(), discriminator_steps=2),
    "own": Counting,
    "adadelta": lambda: pyro.optim.Adadelta({"lr": 1.0}),
}


class Program:
    """Nets with running averages in model, guide and critic, each with a place to stop."""

    def __init__(self, kind, optim, guarded, how=AS_IT_IS):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        self.net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.enc = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        self.critic = nn.Sequential(nn.Linear(4, 4), Averaging(), nn.Tanh(), nn.Linear(4, 1))
        self.stops = {place: Stop() for place in ("model", "guide", "critic")}
        critic = concat_sites(nn.Sequential(self.critic, self.stops["critic"]), "x", "z")
        of_x = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        plain = concat_sites(nn.Sequential(of_x, self.stops["critic"]), "x")
        entry = LISTED[kind]
        self.compares, self.implicit = entry.guide == "empty", entry.guide == "implicit"
        self.critic = of_x if self.compares else self.critic
        loss = entry.make(pyro_spread, lambda *sites: critic if len(sites) > 1 else plain)
        self.loss = how.made(loss)
        self.optim = OPTIMISERS[optim]()
        guide = (lambda x: None) if self.compares else self.guide
        self.svi = SVI(self.model, self.loss.register(self.model, guide), self.optim, self.loss)
        if guarded:
            self.svi = finite_guard(self.svi, "skip")

    def model(self, x):
        pyro.module("net", self.net)
        late = pyro.param("late", torch.tensor(0.5)) if self.late else 1.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.stops["model"](late * self.net(z))
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    late = False

    def guide(self, x):
        pyro.module("enc", self.enc)
        loc, log_scale = self.stops["guide"](self.enc(x)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            if self.implicit:
                base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
                draw = ImplicitDistribution(lambda e: loc + log_scale.exp() * e, base, (2,))
                pyro.sample("z", draw)
            else:
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def state(self):
        """All that the next step reads but the random state, copied."""
        store = pyro.get_param_store()
        nets = nn.ModuleList([self.net, self.enc, self.critic])
        return {
            "params": {name: p.detach().clone() for name, p in store.named_parameters()},
            "grads": [p.grad.clone() for _, p in store.named_parameters() if p.grad is not None],
            "optim": copied(vars(self.optim)),
            "buffers": {name: b.clone() for name, b in nets.named_buffers()},
            "loss": copied(self.loss.get_state()),
        }


def copied(value):
    """A deep copy of state, through objects, that can be compared."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {
            str(id(k)) if isinstance(k, torch.Tensor) else k: copied(v) for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [copied(each) for each in value]
    if isinstance(value, PyroOptim | torch.optim.lr_scheduler.LRScheduler):
        return copied(vars(value))
    if isinstance(value, torch.optim.Optimizer):
        return [copied(dict(value.state)), copied(value.param_groups)]
    return value if isinstance(value, int | float | str | bool | None) else None


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def end(program, place, error):
    """Have the next step end there, and return what it leaves behind."""
    if place == "optimiser":
        Halting.error, Halting.left = error, 3
    elif place == "backward":
        program.stops["model"].backwards = error
    else:
        program.stops[place].forwards = error
    program.late = True
    try:
        with pytest.raises(type(error)):
            program.svi.step(X)
    finally:
        Halting.error, program.late = None, False
        for stop in program.stops.values():
            stop.forwards = stop.backwards = None
    return program.state()


@pytest.fixture(autouse=True)
def fresh():
    yield
    pyro.clear_param_store()


PLACES = ["model", "guide", "critic", "backward", "optimiser"]


@eager_and_compiled(
    LISTED,
    quick=["adaptive"],
    argument="kind",
    error=[RuntimeError("boom"), KeyboardInterrupt()],
    guarded=[True, False],
)
def test_whatever_ends_a_step(kind, how, error, guarded):
    players = LISTED[kind].has_critic
    program = Program(kind, "two players" if players else "adam", guarded, how)
    for _ in range(2):
        program.svi.step(X)
    before = program.state()
    for place in PLACES:
        if (place == "guide" and program.compares) or (place == "critic" and not players):
            continue
        if place == "backward" and not LISTED[kind].trains_model:
            continue  # the stop is in the model
        assert_same(end(program, place, error), before)
        assert program.svi.optim is program.optim or guarded
    # And it goes on as if nothing had been.
    pyro.set_rng_seed(7)
    program.svi.step(X)
    after = program.state()
    again = Program(kind, "two players" if players else "adam", guarded, how)
    for _ in range(2):
        again.svi.step(X)
    pyro.set_rng_seed(7)
    again.svi.step(X)
    wanted = again.state()
    for part in ("params", "buffers", "loss"):
        assert_same(after[part], wanted[part])


@pytest.mark.parametrize("guarded", [False, True], ids=["free", "guarded"])
@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("optim", [name for name in OPTIMISERS if name != "adadelta"])
def test_every_optimiser(optim, steps, guarded):
    program = Program("JS.1 spread", optim, guarded)
    for _ in range(steps):
        program.svi.step(X)
    before = program.state()
    assert_same(end(program, "optimiser", KeyboardInterrupt()), before)
    assert type(program.svi.optim).__name__ == (
        "FiniteGuard" if guarded else type(program.optim).__name__
    )
    program.svi.step(X)


@pytest.mark.parametrize("guarded", [False, True], ids=["free", "guarded"])
def test_an_optimiser_that_cannot_be_made(guarded):
    program = Program("spread", "adam", guarded)
    program.optim.pt_optim_args = {"lr": -1.0}
    before = program.state()
    with pytest.raises(ValueError, match="Invalid learning rate"):
        program.svi.step(X)
    assert_same(program.state(), before)
    program.optim.pt_optim_args = {"lr": 0.1}
    program.svi.step(X)
    assert pyro.get_param_store()


def test_a_failed_first_step_leaves_no_param():
    program = Program("adaptive", "two players", False)
    end(program, "optimiser", KeyboardInterrupt())
    assert not pyro.get_param_store()
    assert not program.optim.generator.optim_objs
    with pytest.raises(ValueError, match="no average"), averaged_params(program.svi):
        pass


@pytest.mark.parametrize("method", ["evaluate_loss", "differentiable_loss"])
def test_what_is_no_step_is_undone_too(method):
    program = Program("spread", "adam", False)
    pyro.param("mine", torch.tensor(1.0)).sum().backward()
    call = {
        "evaluate_loss": program.svi.evaluate_loss,
        "differentiable_loss": lambda x: program.loss.differentiable_loss(
            program.model, program.guide, x
        ),
    }[method]
    program.stops["model"].forwards = KeyboardInterrupt()
    before = program.state()
    with pytest.raises(KeyboardInterrupt):
        call(X)
    assert_same(program.state(), before)


def test_two_losses_in_one_step():
    program, other = Program("spread", "adam", False), {}
    second = AdversarialDivergence(concat_sites(nn.Linear(2, 1), "x"), name="second")

    def both(model, guide, x):
        other["loss"] = program.loss.loss_and_grads(model, guide, x)
        return other["loss"] + second.loss_and_grads(model, lambda x: None, x)

    program.svi.loss_and_grads = both
    program.svi.step(X)
    before, seen = program.state(), second.get_state()
    assert_same(end(program, "optimiser", RuntimeError("boom")), before)
    assert_same(copied(second.get_state()), copied(seen))


def test_a_loss_that_is_handed_over_as_a_function():
    program = Program("spread", "adam", False)

    def loss(model, guide, x):
        return 2 * program.loss.differentiable_loss(model, guide, x)

    program.svi = SVI(program.model, program.guide, program.optim, loss)
    program.svi.step(X)
    before = program.state()
    for place in ("model", "optimiser"):
        assert_same(end(program, place, KeyboardInterrupt()), before)


def test_the_two_players_move_together_in_a_loop_of_ones_own():
    program = Program("JS.1 spread", "two players", False)
    guide = program.svi.guide
    with pyro.poutine.trace(param_only=True) as capture:
        program.loss.loss_and_grads(program.model, guide, X)
    params = [site["value"].unconstrained() for site in capture.trace.nodes.values()]
    before = [p.detach().clone() for p in params]
    Halting.error, Halting.left = RuntimeError("boom"), len(params) - 2
    try:
        with pytest.raises(RuntimeError, match="boom"):
            program.optim(params)
    finally:
        Halting.error = None
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    assert program.optim._steps_done == 0


@eager_and_compiled(["stock"], quick=["stock"])
def test_a_stock_loss_under_a_guard(name, how):
    program = Program("spread", "adam", False)
    loss = how.made(Trace_ELBO())
    svi = finite_guard(SVI(program.model, program.guide, program.optim, loss))
    for _ in range(1 + how.before):
        svi.step(X)
    program.svi = svi
    before = program.state()
    for place in ("model", "guide", "backward", "optimiser"):
        assert_same(end(program, place, KeyboardInterrupt()), before)
    assert guard_status(svi).skipped == 0
