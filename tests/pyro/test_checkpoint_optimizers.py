# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every optimiser goes on bit for bit, or is refused by name when it is saved."""

import collections
import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler

from pyro_spread import load_checkpoint, save_checkpoint, two_player

X = torch.tensor(1.0)
START = torch.tensor([[0.3, -0.2], [0.1, 0.5]])


def build(optim):
    pyro.clear_param_store()

    def model(x):
        mean = pyro.param("a", START.clone()).sum() + pyro.param("b", START.clone()).sum()
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    return SVI(model, lambda x: None, optim, Trace_ELBO())


def go(svi, steps):
    for i in range(steps):
        svi.step(X + i)
        if hasattr(svi.optim, "step"):
            constructor = getattr(svi.optim, "pt_scheduler_constructor", None)
            plateau = constructor is torch.optim.lr_scheduler.ReduceLROnPlateau
            svi.optim.step(*([float(i)] if plateau else []))


def params():
    return torch.stack([pyro.param("a").detach(), pyro.param("b").detach()]).clone()


def resumed(make, folder, steps=4):
    """Params of a run that goes on, and of one that was resumed."""
    svi = build(make())
    go(svi, 3)
    save_checkpoint(folder, svi, 3)
    go(svi, steps)
    wanted = params()
    svi = build(make())
    load_checkpoint(folder, svi, X)
    go(svi, steps)
    return wanted, params()


def refused(make, folder, match):
    svi = build(make())
    go(svi, 3)
    with pytest.raises(ValueError, match=rf"optimiser {match}.* Give .* methods that return and"):
        save_checkpoint(folder / "run", svi, 3)
    assert not (folder / "run").exists()


WITHOUT = {"LBFGS", "SparseAdam"}  # one needs a closure, the other sparse gradients
OPTIMIZERS = sorted(
    {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    - WITHOUT
    - {"Optimizer"}
)
SCHEDULES = {
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [2, 5]},
    "LambdaLR": {"lr_lambda": lambda epoch: 0.9**epoch},
    "MultiplicativeLR": {"lr_lambda": lambda epoch: 0.9},
    "ConstantLR": {},
    "LinearLR": {},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1},
    "OneCycleLR": {"max_lr": 0.2, "total_steps": 7},
    "ReduceLROnPlateau": {"patience": 0},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_of_torch(tmp_path, name):
    make = functools.partial(PyroOptim, getattr(torch.optim, name), {"lr": 0.05})
    wanted, found = resumed(make, tmp_path)
    assert torch.equal(found, wanted)
    assert not torch.equal(found[0], START)


@pytest.mark.parametrize("options", [{"foreach": True}, {"amsgrad": True}, {"maximize": True}])
def test_options_of_adam(tmp_path, options):
    wanted, found = resumed(lambda: pyro.optim.Adam({"lr": 0.05, **options}), tmp_path)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["ClippedAdam", "DCTAdam", "AdagradRMSProp"])
def test_optimisers_of_pyro(tmp_path, name):
    options = {"eta": 0.1} if name == "AdagradRMSProp" else {"lr": 0.05}
    wanted, found = resumed(lambda: getattr(pyro.optim, name)(dict(options)), tmp_path)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_of_torch(tmp_path, name):
    def make():
        sgd = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.05, "momentum": 0.9}}
        return getattr(pyro.optim, name)({**sgd, **SCHEDULES[name]})

    wanted, found = resumed(make, tmp_path)
    assert torch.equal(found, wanted)


class Plain(torch.optim.SGD):
    """A user's class with settings, and no state but that of torch."""

    def __init__(self, params, lr, factor=2.0):
        super().__init__(params, lr, momentum=0.9)
        self.factor, self.table = factor, {"a": [1.0, torch.ones(2)]}


class Lookahead(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.fast = torch.optim.Adam(self.param_groups[0]["params"], lr)

    def step(self, closure=None):
        self.fast.step()


class Whole(Lookahead):
    """It says all of its state."""

    def state_dict(self):
        return {**super().state_dict(), "fast": self.fast.state_dict()}

    def load_state_dict(self, state_dict):
        state_dict = dict(state_dict)
        self.fast.load_state_dict(state_dict.pop("fast"))
        super().load_state_dict(state_dict)


class Wrapper:
    """No optimiser of torch, and taken for a schedule since it has an ``optimizer``."""

    def __init__(self, params, lr):
        self.optimizer, self.slow = (
            torch.optim.SGD(params, lr),
            [p.detach().clone() for p in params],
        )

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

    def step(self, closure=None):
        self.optimizer.step()
        self.slow[0].lerp_(self.optimizer.param_groups[0]["params"][0].detach(), 0.5)


def with_state(start, update):
    """A class with one more attribute, which each step moves."""

    class Own(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr)
            self.held = start()

        def step(self, closure=None):
            super().step()
            update(self)

    return Own


class Box:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 0


def remembering():
    count = [0]

    def clip():
        count[0] += 1

    return clip


HIDDEN = {
    "a number": (int, lambda o: setattr(o, "held", o.held + 1)),
    "a tensor": (lambda: torch.zeros(1), lambda o: o.held.add_(1)),
    "a list": (list, lambda o: o.held.append(0.5)),
    "a deque": (collections.deque, lambda o: o.held.append(0.5)),
    "a dict by param": (dict, lambda o: o.held.update({o.param_groups[0]["params"][0]: 1})),
    "a set": (set, lambda o: o.held.add(3)),
    "a slot": (Box, lambda o: setattr(o.held, "value", o.held.value + 1)),
    "a closure": (remembering, lambda o: o.held()),
    "a partial": (lambda: functools.partial(remembering()), lambda o: o.held()),
    "a generator": (
        lambda: torch.Generator().manual_seed(0),
        lambda o: torch.rand(1, generator=o.held),
    ),
    "a schedule": (
        lambda: torch.optim.lr_scheduler.ExponentialLR(torch.optim.SGD([torch.ones(1)], 0.1), 0.9),
        lambda o: (o.held.optimizer.step(), o.held.step()),
    ),
}


def test_settings_are_no_state(tmp_path):
    wanted, found = resumed(lambda: PyroOptim(Plain, {"lr": 0.05}), tmp_path)
    assert torch.equal(found, wanted)


def test_a_wrapper_that_says_all_is_kept(tmp_path):
    wanted, found = resumed(lambda: PyroOptim(Whole, {"lr": 0.05}), tmp_path)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", [Lookahead, Wrapper])
def test_wrappers_are_refused(tmp_path, kind):
    what = "fast.state" if kind is Lookahead else "slow"
    match = rf"{kind.__name__} keeps state that its state_dict .*'{what}.*' of param"
    refused(lambda: PyroOptim(kind, {"lr": 0.05}), tmp_path, match)


@pytest.mark.parametrize("name", HIDDEN)
def test_state_beside_the_state_dict_is_refused(tmp_path, name):
    kind = with_state(*HIDDEN[name])
    refused(lambda: PyroOptim(kind, {"lr": 0.05}), tmp_path, r"Own keeps .*'held.*' of param 'a'")


def test_a_wrapper_inside_of_two_players_is_refused(tmp_path):
    def make():
        return two_player(PyroOptim(Lookahead, {"lr": 0.1}), pyro.optim.Adam({"lr": 0.1}), name="b")

    refused(make, tmp_path, "Lookahead keeps state")


def test_a_function_of_a_schedule_that_remembers_is_refused(tmp_path):
    class Rate:
        def __init__(self):
            self.calls = 0

    def own(params, **options):
        rate = Rate()

        def at(epoch):
            rate.calls += 1
            return 0.9**rate.calls

        return torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD(params, **options), at)

    svi = build(PyroOptim(own, {"lr": 0.1}))
    go(svi, 1)
    for schedule in svi.optim.optim_objs.values():
        schedule.step()
    with pytest.raises(ValueError, match=r"LambdaLR keeps .*'lr_lambdas.0.*calls"):
        save_checkpoint(tmp_path, svi, 1)


class Counting(PyroOptim):
    """A user's class that counts."""

    def __init__(self, start=0):
        super().__init__(torch.optim.SGD, {"lr": 0.05})
        self.count, self.history, self.label = start, [0.5], "mine"

    def __call__(self, params, *args, **kwargs):
        self.count += 1
        self.history.append(float(self.count))
        for param in params:
            param.grad *= 1.0 / self.count
        super().__call__(params, *args, **kwargs)


def test_numbers_of_a_pyro_optim_are_kept(tmp_path):
    wanted, found = resumed(Counting, tmp_path)
    assert torch.equal(found, wanted)
    svi = build(Counting())
    load_checkpoint(tmp_path, svi, X)
    assert svi.optim.count == 3
    assert svi.optim.history == [0.5, 1.0, 2.0, 3.0]


class Holding(PyroOptim):
    def __init__(self, held):
        super().__init__(torch.optim.SGD, {"lr": 0.05})
        self.held = held


@pytest.mark.parametrize(
    "held",
    [torch.ones(2), [torch.ones(2)], {"a": torch.optim.SGD([torch.ones(1)], 0.1)}, Box()],
)
def test_what_a_pyro_optim_holds_beside_numbers_is_refused(tmp_path, held):
    match = r"Holding keeps .*its attribute 'held' is or holds a (Tensor|SGD|Box)"
    refused(lambda: Holding(held), tmp_path, match)


def test_functions_of_a_pyro_optim_are_settings(tmp_path):
    wanted, found = resumed(lambda: Holding(len), tmp_path)
    assert torch.equal(found, wanted)


class OwnState(Holding):
    """It keeps its state in its own way."""

    def get_state(self):
        return {**super().get_state(), "held": self.held.clone()}

    def set_state(self, state_dict):
        state = dict(state_dict)
        self.held = state.pop("held")
        super().set_state(state)


def test_a_pyro_optim_with_get_state_is_trusted(tmp_path):
    svi = build(OwnState(torch.ones(2)))
    go(svi, 2)
    save_checkpoint(tmp_path, svi, 2)
    svi = build(OwnState(torch.zeros(2)))
    load_checkpoint(tmp_path, svi, X)
    assert svi.optim.held.tolist() == [1, 1]


class Clipping(PyroOptim):
    """Its clipping remembers norms."""

    def __init__(self):
        super().__init__(torch.optim.SGD, {"lr": 0.05})

    def _get_grad_clip(self, param):
        norms = []
        return lambda p: norms.append(float(p.grad.norm()))


def test_clipping_that_remembers_is_refused(tmp_path):
    refused(Clipping, tmp_path, r"Clipping keeps .*gradient clipping.norms")


class OwnSchedule(PyroLRScheduler):
    def __init__(self):
        sgd = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.05}, "gamma": 0.9}
        super().__init__(torch.optim.lr_scheduler.ExponentialLR, sgd)
        self.calls = 0

    def step(self, *args, **kwargs):
        self.calls += 1
        if self.calls % 2 == 0:
            super().step(*args, **kwargs)


def test_numbers_of_an_own_schedule_are_kept(tmp_path):
    wanted, found = resumed(OwnSchedule, tmp_path)
    assert torch.equal(found, wanted)
