# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Steps that would end in NaN or inf in Pyro: who is named, what is left, what a guard does."""

import copy
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_spread import (
    MMD,
    AdversarialDivergence,
    GaussianKernel,
    GaussianNoise,
    ImplicitDistribution,
    JointContrastELBO,
    NonFiniteError,
    PriorContrastELBO,
    SemiImplicitELBO,
    SpreadELBO,
    WassersteinCritic,
    averaged_params,
    concat_sites,
    finite_guard,
    guard_status,
    two_player,
)

NOISE = GaussianNoise(0.5)
X = torch.linspace(-1.0, 2.0, 12)[:, None].expand(12, 2).clone()
BAD = X.clone()
BAD[3, 1] = math.nan


class Nets:
    """Two players with batch normalisation, always the same at the start."""

    def __init__(self):
        pyro.clear_param_store()
        torch.manual_seed(3)
        self.decoder = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        self.critic = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        pyro.set_rng_seed(4)

    def model(self, x):
        decoder = pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(decoder(z), event_dim=1), obs=x)

    def empty(self, x):
        pass

    def implicit(self, x):
        encoder = pyro.module("encoder", self.encoder)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)

        def draw(eps):
            return encoder(torch.cat([x.expand(*eps.shape), eps], -1))

        with pyro.plate("data", len(x)):
            pyro.sample("z", ImplicitDistribution(draw, base, (2,)))

    def normal(self, x):
        encoder = pyro.module("encoder", self.encoder)
        loc = encoder(torch.cat([x, x], -1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def prior(self, **options):
        critic = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
        loss = PriorContrastELBO(concat_sites(critic, "z", "x"), {"x": NOISE}, **options)
        return self.implicit, loss

    def made(self, name):
        both = {"x": NOISE}
        return {
            "spread": lambda: (self.normal, SpreadELBO(both)),
            "adversarial": lambda: (
                self.empty,
                AdversarialDivergence(concat_sites(self.critic, "x")),
            ),
            "wasserstein": lambda: (self.empty, WassersteinCritic(concat_sites(self.critic, "x"))),
            "mmd": lambda: (self.empty, MMD(GaussianKernel(1.0))),
            "prior": lambda: self.prior(annealing=20),
            "joint": lambda: (
                self.implicit,
                JointContrastELBO(
                    concat_sites(
                        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), "z", "x"
                    ),
                    noise=both,
                ),
            ),
        }[name]()


NAMES = ("spread", "adversarial", "wasserstein", "mmd", "prior", "joint")
CRITICS = ("adversarial", "wasserstein", "prior", "joint")


def adam(rate=1e-2):
    return pyro.optim.Adam({"lr": rate})


def start(name, on_nonfinite=None, steps=3, optim=None, **options):
    nets = Nets()
    guide, loss = nets.made(name)
    if optim is None:
        optim = two_player(adam(), adam()) if name in CRITICS else adam()
    svi = SVI(nets.model, loss.register(nets.model, guide), optim, loss)
    if on_nonfinite:
        svi = finite_guard(svi, on_nonfinite, **options)
    for _ in range(steps):
        svi.step(X)
    return svi, nets, loss


def inner(svi):
    return getattr(svi.optim, "guarded", svi.optim)


def everything(svi, nets, loss):
    """All that a step may change, the random state apart."""
    modules = (nets.decoder, nets.encoder, nets.critic)
    counters = [getattr(loss, "steps_done", None), getattr(loss, "_watched", None)]
    if hasattr(loss, "_contrast"):
        counters.append(loss._contrast._watch._seen)
    return copy.deepcopy(
        (
            dict(pyro.get_param_store().get_state()["params"]),
            inner(svi).get_state(),
            [list(module.state_dict().values()) for module in modules],
            [[p.grad is not None and bool(p.grad.any()) for p in m.parameters()] for m in modules],
            counters,
        )
    )


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def poison(param, value=math.nan):
    with torch.no_grad():
        param.view(-1)[0] = value


def break_gradient(nets):
    """From now on some gradient of the decoder is NaN, though all values are finite."""
    original = nets.decoder[2]

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = original.weight, original.bias

        def forward(self, h):
            zero = self.bias.sum() * 0
            return nn.functional.linear(h, self.weight, self.bias) + (zero * zero).sqrt()

    nets.decoder[2] = Root()
    return original


class TestByDefault:
    @pytest.mark.parametrize("name", NAMES)
    def test_bad_data_name_the_site_and_change_nothing(self, name):
        svi, nets, loss = start(name)
        before = everything(svi, nets, loss)
        with pytest.raises(NonFiniteError, match="NaN") as error:
            svi.step(BAD)
        assert "'x'" in str(error.value)
        assert "mask" in str(error.value)
        assert_same(everything(svi, nets, loss), before)

    @pytest.mark.parametrize("name", CRITICS)
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_bad_param_of_the_critic_is_named(self, name, value):
        svi, nets, loss = start(name)
        critic = loss.discriminator.net
        poison(critic[-1].bias, value)
        before = everything(svi, nets, loss)
        with pytest.raises(NonFiniteError, match=r"param '.*2\.bias' of the discriminator"):
            svi.step(X)
        assert_same(everything(svi, nets, loss)[1:], before[1:])

    @pytest.mark.parametrize("name", CRITICS)
    def test_logits_that_overflow_are_the_discriminators(self, name):
        svi, nets, loss = start(name)
        loss.discriminator.net.append(nn.Threshold(1e9, math.inf))
        before = everything(svi, nets, loss)
        with pytest.raises(NonFiniteError, match="discriminator: its logits contain"):
            svi.step(X)
        assert_same(everything(svi, nets, loss), before)

    @pytest.mark.parametrize("name", ["adversarial", "joint"])
    def test_bad_param_of_the_generator_is_named(self, name):
        svi, nets, _ = start(name)
        poison(nets.decoder[0].weight)
        with pytest.raises(NonFiniteError, match=r"'decoder.*0\.weight' of the generator"):
            svi.step(X)

    def test_bad_draws_are_named_as_such(self):
        svi, nets, _ = start("adversarial")
        nets.decoder.append(nn.Threshold(1e9, math.inf))
        with pytest.raises(NonFiniteError, match=r"site 'x' of the generator: .* contain inf"):
            svi.step(X)

    def test_evaluation_with_a_bad_critic_leaves_its_buffers(self):
        svi, nets, loss = start("adversarial")
        poison(loss.discriminator.net[-1].bias)
        before = copy.deepcopy(nets.critic.state_dict())
        with pytest.raises(NonFiniteError, match="discriminator"):
            svi.evaluate_loss(X)
        torch.testing.assert_close(nets.critic.state_dict(), before, equal_nan=True)

    @pytest.mark.parametrize("name", ["spread", "adversarial", "prior"])
    def test_the_next_step_is_as_if_nothing_had_been(self, name):
        results = []
        for fails in (False, True):
            svi, nets, loss = start(name)
            if fails:
                with pytest.raises(NonFiniteError):
                    svi.step(BAD)
            pyro.set_rng_seed(9)
            svi.step(X)
            results.append(everything(svi, nets, loss))
        assert_same(*results)

    def test_params_of_a_first_step_that_fails_are_gone(self):
        svi, *_ = start("mmd", steps=0)
        with pytest.raises(NonFiniteError):
            svi.step(BAD)
        assert not pyro.get_param_store()


@pytest.mark.parametrize("name", NAMES)
class TestGuard:
    def test_gradient_is_named_before_any_player_moves(self, name):
        svi, nets, loss = start(name, "raise")
        break_gradient(nets)
        before = everything(svi, nets, loss)
        with pytest.raises(NonFiniteError, match=r"'decoder.*' of the generator: its gradient"):
            svi.step(X)
        assert_same(everything(svi, nets, loss), before)

    @pytest.mark.parametrize("what", ["data", "gradient", "logits"])
    def test_skip_moves_nobody_and_goes_on(self, name, what):
        if what == "logits" and name not in CRITICS:
            pytest.skip("has no critic")
        svi, nets, loss = start(name, "skip")
        good = break_gradient(nets) if what == "gradient" else None
        if what == "logits":
            poison(loss.discriminator.net[-1].bias)
        before = everything(svi, nets, loss)
        result = svi.step(BAD if what == "data" else X)
        assert math.isnan(result)
        assert_same(everything(svi, nets, loss), before)
        status = guard_status(svi)
        assert status[:3] == (1, 1, 1.0)
        assert {"data": "'x'", "gradient": "gradient", "logits": "discr"}[what] in status.last
        if what == "logits":
            poison(loss.discriminator.net[-1].bias, 0.1)
        if good is not None:
            nets.decoder[2] = good
        assert math.isfinite(svi.step(X))
        assert guard_status(svi).in_a_row == 0


class TestActions:
    def test_skipping_in_the_very_first_step(self):
        svi, *_ = start("adversarial", "skip", steps=0)
        assert math.isnan(svi.step(BAD))
        assert not pyro.get_param_store()
        assert math.isfinite(svi.step(X))

    def test_good_steps_are_those_without_a_guard(self):
        results = [everything(*start("adversarial", action)) for action in (None, "skip", "reduce")]
        assert_same(results[0], results[1])
        assert_same(results[0], results[2])

    def test_reduce_shrinks_the_updates_of_both_players_and_recovers(self):
        def moves(svi, nets):
            before = [p.detach().clone() for p in (nets.decoder[2].bias, nets.critic[2].bias)]
            pyro.set_rng_seed(7)
            svi.step(X)
            after = (nets.decoder[2].bias, nets.critic[2].bias)
            return [a.detach() - b for a, b in zip(after, before, strict=True)]

        full = moves(*start("adversarial", "reduce", factor=0.25, recover_after=2)[:2])
        svi, nets, _ = start("adversarial", "reduce", factor=0.25, recover_after=2)
        svi.step(BAD)
        assert guard_status(svi).step_scale == 0.25
        less = moves(svi, nets)
        torch.testing.assert_close(less, [0.25 * move for move in full], rtol=1e-4, atol=1e-7)
        svi.step(X)
        assert guard_status(svi).step_scale == 1.0

    def test_an_update_that_overflows_is_taken_back(self):
        def rate(name):
            return {"lr": 1e-2 if "decoder" in name else math.inf}

        optim = two_player(adam(), pyro.optim.Adam(rate), ema=0.9)
        svi, nets, _ = start("adversarial", "raise", steps=0, optim=optim)
        for _ in range(2):
            with pytest.raises(NonFiniteError, match=r"of the discriminator: the optimiser's step"):
                svi.step(X)
            assert optim.averages == {}
            assert optim._steps_done == 0
            assert not optim.generator.optim_objs
            assert all(bool(torch.isfinite(p).all()) for p in nets.critic.parameters())
            assert int(nets.decoder[1].num_batches_tracked) == 0

    def test_state_of_the_optimiser_is_taken_back_too(self):
        svi, nets, loss = start("adversarial", "skip")
        for optimizer in inner(svi).discriminator.optim_objs.values():
            optimizer.param_groups[0]["lr"] = math.inf
        before = everything(svi, nets, loss)
        svi.step(X)
        assert "discriminator: the optimiser's step" in guard_status(svi).last
        for one, other in zip(everything(svi, nets, loss)[:4], before[:4], strict=True):
            assert_same(one, other)

    def test_stock_losses_are_guarded_too(self):
        nets = Nets()
        svi = SVI(nets.model, nets.normal, adam(), Trace_ELBO())
        svi = finite_guard(svi, "raise")
        with pytest.raises(NonFiniteError, match=r"the loss is inf.*Delta without noise"):
            svi.step(X)

    def test_other_errors_are_not_skipped(self):
        svi, *_ = start("adversarial", "skip")
        with pytest.raises(ValueError, match="event shape"):
            svi.step(torch.zeros(5, 3))
        assert guard_status(svi).skipped == 0

    def test_state_is_saved_and_restored(self):
        svi, *_ = start("adversarial", "reduce")
        svi.step(BAD)
        state = copy.deepcopy(svi.optim.get_state())
        other, *_ = start("adversarial", "reduce", steps=1)
        other.optim.set_state(state)
        assert guard_status(other) == guard_status(svi)

    def test_averaged_params_are_found_behind_it(self):
        svi, *_ = start("adversarial", "raise", optim=two_player(adam(), adam(), ema=0.5))
        with averaged_params(svi):
            pass

    def test_semi_implicit_bound(self):
        nets = Nets()

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        loss = SemiImplicitELBO({"z": NOISE}, 2)
        svi = finite_guard(SVI(model, nets.implicit, adam(), loss), "skip")
        assert math.isfinite(svi.step(X))
        before = everything(svi, nets, loss)
        assert math.isnan(svi.step(BAD))
        assert_same(everything(svi, nets, loss), before)
        assert "'x'" in guard_status(svi).last

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda svi: finite_guard(svi.optim), TypeError, "Guard the SVI, not its optimiser"),
            (lambda svi: finite_guard(svi, "ignore"), ValueError, "on_nonfinite must be one of"),
            (lambda svi: finite_guard(svi, factor=1.0), ValueError, "factor must be in (0, 1)"),
            (lambda svi: finite_guard(svi, recover_after=0), ValueError, "recover_after"),
            (lambda svi: finite_guard(finite_guard(svi)), ValueError, "has a guard already"),
            (guard_status, ValueError, "has no guard: use svi = finite_guard("),
        ],
    )
    def test_refusals(self, change, error, message):
        svi, *_ = start("mmd", steps=0)
        with pytest.raises(error, match=re.escape(message)):
            change(svi)
