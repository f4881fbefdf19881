# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Around a step of an adversarial loss in Pyro: seeds, evaluation, modules, lazy layers, files."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive
from pyro_adversarial import Recorder, X, guide, model, optim, steps
from torch import nn

from pyro_spread import (
    R1,
    AdversarialDivergence,
    GaussianNoise,
    GradientPenalty,
    JSPi,
    concat_sites,
)
from pyro_spread.ratio import MLPCritic


def test_seeds_repeat():
    def once(seed):
        pyro.clear_param_store()
        torch.manual_seed(0)
        critic = MLPCritic((4,), input_dim=2)
        pyro.set_rng_seed(seed)
        noise, regularizer = {"x": GaussianNoise(0.1)}, GradientPenalty(1.0)
        options = {"critic": concat_sites(critic, "x"), "noise": noise, "regularizer": regularizer}
        return steps(model, X, count=3, **options)[1], pyro.param("w").item()

    assert once(1) == once(1) != once(2)


def test_evaluating_trains_nothing_and_drawing_is_clean():
    critic = Recorder()
    loss = AdversarialDivergence(critic, noise={"x": GaussianNoise(100.0)})
    svi = SVI(model, guide, optim(), loss)
    svi.step(X)
    before = pyro.param("w").item(), critic.weight.item()
    assert 0 <= svi.evaluate_loss(X) <= math.log(2)
    assert (pyro.param("w").item(), critic.weight.item()) == before
    assert all(p.grad is None or not p.grad.any() for p in critic.parameters())
    clean = Predictive(poutine.uncondition(model), num_samples=50)(X)["x"]
    assert clean.abs().max() < 10


@pytest.mark.parametrize("update", ["one_pass", "two_pass"])
def test_the_module_form_gives_the_same_gradients(update):
    critic = Recorder()
    loss = AdversarialDivergence(critic, JSPi(0.3), regularizer=R1(1.0), update=update)
    pyro.set_rng_seed(1)
    value = loss.loss_and_grads(model, guide, X)
    expected = {name: p.grad.clone() for name, p in pyro.get_param_store()._params.items()}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Delta(self.w * z, event_dim=1), obs=x)

    module = loss(Model(), nn.Module())
    names = [name for name, _ in module.named_parameters()]
    assert sorted(names) == ["discriminator.weight", "model.w"]
    module.guide.forward = guide
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    optimiser.zero_grad()
    pyro.set_rng_seed(1)
    result = module(X)
    result.backward()
    assert result.item() == pytest.approx(value)
    torch.testing.assert_close(critic.weight.grad, expected["discriminator$$$weight"])
    torch.testing.assert_close(module.model.w.grad, expected["w"])
    optimiser.step()
    assert module.model.w.item() != 0.5


def test_lazy_critics_take_their_sizes_at_the_first_step():
    critic = concat_sites(MLPCritic((4,)), "x")
    steps(model, X, critic=critic)
    assert "discriminator$$$net.layers.0.weight" in pyro.get_param_store()
    pyro.clear_param_store()
    critic = concat_sites(MLPCritic((4,)), "x")
    assert AdversarialDivergence(critic).loss(model, guide, X) >= 0


def test_a_loaded_critic_goes_on_where_it_stopped(tmp_path):
    def fresh():
        loss = AdversarialDivergence(concat_sites(MLPCritic((4,)), "x"))
        return loss, SVI(model, guide, optim(), loss)

    _, svi = fresh()
    for _ in range(3):
        svi.step(X)
    pyro.get_param_store().save(str(tmp_path / "params.pt"))
    pyro.set_rng_seed(3)
    expected = [svi.step(X) for _ in range(3)]
    name = "discriminator$$$net.layers.0.weight"
    trained = pyro.param(name).detach().clone()

    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "params.pt"))
    loss, svi = fresh()
    pyro.set_rng_seed(3)
    loss.loss(model, guide, X)  # lazy sizes, which draw
    pyro.set_rng_seed(3)
    assert [svi.step(X) for _ in range(3)] == expected
    assert torch.equal(pyro.param(name), trained)
    assert loss.discriminator.net.layers[0].weight is pyro.get_param_store()._params[name]
