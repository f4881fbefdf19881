# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Under a compiled loss an optimiser moves all params at once: they move as they always do."""

import functools
import warnings

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_spread import (
    AdversarialDivergence,
    EnergyDistance,
    GaussianNoise,
    NonFiniteError,
    SpreadELBO,
    compiled,
    concat_sites,
    finite_guard,
    load_checkpoint,
    save_checkpoint,
    two_player,
)
from pyro_spread._together import _known

AS_IT_IS = functools.partial(compiled, backend="eager")
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def model(x):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    weight = pyro.param("weight", 0.1 * torch.ones(2, 3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight, scale).to_event(1), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.zeros(3, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ loc, 0.5).to_event(1))


def by_name(name):
    return {"lr": 1e-2 if name == "weight" else 3e-2}


def decaying(rate):
    args = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": rate}
    return pyro.optim.ExponentialLR(args)


OPTIMISERS = {
    "adam": lambda: pyro.optim.Adam({"lr": 1e-2}),
    "clipped": lambda: pyro.optim.Adam({"lr": 1e-2}, {"clip_norm": 0.5}),
    "by name": lambda: pyro.optim.Adam(by_name),
    "adamw": lambda: pyro.optim.AdamW({"lr": 1e-2, "weight_decay": 0.1}),
    "amsgrad": lambda: pyro.optim.Adam({"lr": 1e-2, "amsgrad": True}),
    "sgd": lambda: pyro.optim.SGD({"lr": 1e-3}),
    "momentum": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}),
    "rmsprop": lambda: pyro.optim.RMSprop({"lr": 1e-2}),
    "adagrad": lambda: pyro.optim.Adagrad({"lr": 1e-2}),
    "nadam": lambda: pyro.optim.NAdam({"lr": 1e-2, "betas": [0.8, 0.9]}),
    "schedule": lambda: decaying(0.5),
}


def train(optim, how, guide=guide, loss=Trace_ELBO):
    """Params and the state of the optimiser after some steps."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(model, guide, optim, how(loss()))
    for _ in range(6):
        svi.step(X)
        if hasattr(svi.optim, "step"):
            svi.optim.step()
    params = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    return params, svi.optim.get_state()


def is_together(optim):
    return bool(_known.get(optim))


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_params_and_states_are_the_same(name):
    alone, optim = OPTIMISERS[name](), OPTIMISERS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a schedule whose optimiser seems not to have stepped
        expected, found = train(alone, lambda loss: loss), train(optim, AS_IT_IS)
    assert is_together(optim)
    assert not is_together(alone)
    assert_same(found[0], expected[0])
    for param, state in expected[1].items():
        inner, other = (s.get("optimizer", s) for s in (found[1][param], state))
        assert inner["param_groups"] == other["param_groups"]
        assert_same(inner["state"], other["state"])


def test_own_classes_and_what_couples_params_step_alone():
    class Mine(pyro.optim.PyroOptim):
        def __call__(self, params):
            self.calls = getattr(self, "calls", 0) + 1
            super().__call__(params)

    mine = Mine(torch.optim.Adam, {"lr": 1e-2})
    for optim in (mine, pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.9})):
        train(optim, AS_IT_IS)
        assert not is_together(optim)
    assert mine.calls == 6


def test_a_setting_that_is_changed_by_hand():
    def run(how):
        optim = pyro.optim.Adam({"lr": 1e-2})
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = SVI(model, guide, optim, how(Trace_ELBO()))
        for step in range(6):
            svi.step(X)
            if step == 3:
                for each in optim.optim_objs.values():
                    each.param_groups[0]["lr"] = 0.1
        return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    assert_same(run(AS_IT_IS), run(lambda loss: loss))


def test_hooks_that_are_added_later_are_called():
    called = []
    optim = pyro.optim.Adam({"lr": 1e-2})
    train(optim, AS_IT_IS)
    assert is_together(optim)
    for each in optim.optim_objs.values():
        each.register_step_post_hook(lambda *_: called.append(1))
    SVI(model, guide, optim, AS_IT_IS(Trace_ELBO())).step(X)
    svi = SVI(model, guide, optim, AS_IT_IS(Trace_ELBO()))
    for _ in range(3):
        svi.step(X)
    assert len(called) == 4 * 3


def test_a_param_that_only_some_steps_use_goes_on_by_its_momentum():
    def shifted(x, twice):
        loc, other = pyro.param("loc", torch.zeros(3)), pyro.param("other", torch.ones(3))
        with pyro.plate("data", len(x)):
            mean = loc + other if twice else loc
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def run(how):
        pyro.clear_param_store()
        svi = SVI(shifted, lambda x, twice: None, pyro.optim.Adam({"lr": 1e-2}), how(Trace_ELBO()))
        for step in range(10):
            svi.step(X, step % 2 == 0)
        return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    assert_same(run(AS_IT_IS), run(lambda loss: loss))


def test_a_checkpoint_is_read_and_goes_on(tmp_path):
    def start(how):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        return SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), how(Trace_ELBO()))

    svi = start(AS_IT_IS)
    for _ in range(4):
        svi.step(X)
    assert is_together(svi.optim)
    save_checkpoint(tmp_path, svi, 4)
    losses = [svi.step(X) for _ in range(4)]
    for how in (AS_IT_IS, lambda loss: loss):
        svi = start(how)
        load_checkpoint(tmp_path, svi, X)
        assert [svi.step(X) for _ in range(4)] == pytest.approx(losses, rel=1e-5)


def adversarial():
    torch.manual_seed(0)
    return AdversarialDivergence(concat_sites(nn.Linear(3, 1)))


def test_both_players():
    def optim():
        slow, fast = (pyro.optim.Adam({"lr": lr}) for lr in (1e-3, 1e-2))
        return two_player(slow, fast, discriminator_steps=2, ema=0.9)

    alone, optim = optim(), optim()
    expected = train(alone, lambda loss: loss, lambda x: None, adversarial)
    found = train(optim, AS_IT_IS, lambda x: None, adversarial)
    assert is_together(optim.generator)
    assert is_together(optim.discriminator)
    assert_same(found[0], expected[0])
    assert_same(optim.averages, alone.averages)


def test_gradients_go_to_the_params_and_are_not_kept():
    optim = pyro.optim.Adam({"lr": 1e-2})
    train(optim, AS_IT_IS)
    assert all(param.grad is None for param in optim.optim_objs)


class Shifts(nn.Module):
    """A model whose gradients are not laid out as its params, and share their memory."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.turned = nn.Parameter(torch.randn(3, 3))
        self.one, self.two = (nn.Parameter(torch.zeros(8, 3)) for _ in range(2))
        self.flat, self.other = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.zeros(3, 8))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1))
            moved = torch.einsum("ij,kj->ik", z, self.turned) + self.one + self.two
            moved = moved + self.flat.view(8, 3) + self.other.t()
            pyro.sample("x", dist.Delta(moved, event_dim=1), obs=x)


def test_gradients_that_are_laid_out_in_another_way():
    def run(how):
        pyro.clear_param_store()
        net = Shifts()
        svi = SVI(
            lambda x: pyro.module("net", net)(x),
            lambda x: None,
            pyro.optim.Adam({"lr": 1e-2}, {"clip_norm": 0.1}),
            how(EnergyDistance()),
        )
        for _ in range(6):
            svi.step(X)
        return dict(net.state_dict())

    assert_same(run(AS_IT_IS), run(lambda loss: loss))


def test_gradients_of_several_passes_add_up():
    def run(how):
        module = how(EnergyDistance())(Shifts(), nn.Identity())
        torch.manual_seed(1)
        for _ in range(2):
            module(X)
        for _ in range(3):
            module(X).backward()
        return [param.grad for param in module.parameters()]

    assert_same(run(AS_IT_IS), run(lambda loss: loss))


def test_a_layout_that_is_changed_between_steps():
    def run(how):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), how(Trace_ELBO()))
        for step in range(6):
            svi.step(X)
            if step == 3:
                weight = pyro.param("weight")
                weight.data = weight.data.t().contiguous().t()
                weight.grad = None
        return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    assert_same(run(AS_IT_IS), run(lambda loss: loss))


def test_a_backward_pass_that_keeps_its_graph():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.scale, 1.0).to_event(1), obs=x)

    module = AS_IT_IS(Trace_ELBO())(Scale(), nn.Identity())
    for _ in range(3):
        value = module(X)
    params = list(module.parameters())
    torch.autograd.grad(value, params, retain_graph=True)[0].zero_()
    value.backward(retain_graph=True)
    once = module.model.scale.grad.clone()
    value.backward()
    assert once.any()
    torch.testing.assert_close(module.model.scale.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second backward pass through one value of a compiled"):
        value.backward()


class TestFailures:
    """A step that fails leaves params and optimiser as they were."""

    def run(self, start, optim):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = SVI(model, guide, optim, AS_IT_IS(SpreadELBO({"x": GaussianNoise(0.3)})))
        svi = start(svi)
        for _ in range(4):
            svi.step(X)
        return svi

    def state(self, svi):
        params = {n: p.detach().clone() for n, p in pyro.get_param_store().items()}
        states = [o.state_dict() for o in svi.optim.parts()["guarded"].optim_objs.values()]
        return params, [{k: v.clone() for k, v in s["state"][0].items()} for s in states]

    def test_an_update_that_is_not_finite_is_skipped(self):
        optim = pyro.optim.Adam({"lr": 1e-2})
        svi = self.run(functools.partial(finite_guard, on_nonfinite="raise"), optim)
        assert is_together(optim)
        for each in optim.optim_objs.values():
            each.param_groups[0]["lr"] = float("inf")
        before = self.state(svi)
        with pytest.raises(NonFiniteError, match="would have made it inf"):
            svi.step(X)
        assert_same(self.state(svi), before)

    def test_a_guard_shortens_steps_and_undoes_those_that_are_not_finite(self):
        def run(how):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            optim = pyro.optim.Adam({"lr": 1e-2})
            loss = how(SpreadELBO({"x": GaussianNoise(0.3)}))
            svi = finite_guard(SVI(model, guide, optim, loss), on_nonfinite="reduce")
            for step in range(8):
                for each in optim.optim_objs.values():
                    each.param_groups[0]["lr"] = float("inf") if step == 4 else 1e-2
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    svi.step(X)
            assert svi.optim.status.skipped == 1
            return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

        assert_same(run(AS_IT_IS), run(lambda loss: loss))

    def test_clipping_that_raises_undoes_the_step(self):
        optim = pyro.optim.Adam({"lr": 1e-2}, {"clip_norm": 1.0})
        svi = self.run(lambda svi: svi, optim)
        before = {n: p.detach().clone() for n, p in pyro.get_param_store().items()}

        def fail(param):
            raise RuntimeError("not today")

        optim.grad_clip[next(reversed(optim.grad_clip))] = fail
        with pytest.raises(RuntimeError, match="not today"):
            svi.step(X)
        assert_same({n: p.detach() for n, p in pyro.get_param_store().items()}, before)
        assert type(svi.optim) is pyro.optim.PyroOptim
