# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""One pass through the critic for both players gives the gradients of two."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro_contrast import data, guide, model, param, value_and_grads
from torch import nn

from pyro_spread import R1, ImplicitDistribution, PriorContrastELBO, concat_sites
from pyro_spread.ratio import MLPCritic

pytestmark = pytest.mark.usefixtures("double")


class Opaque(nn.Linear):
    """A layer of which nobody knows what it does: the critic is run once for each player."""


class Centred(nn.Module):
    """Mixes the samples, as batch normalisation does."""

    def forward(self, x):
        return x - x.mean(0)


def net(*extra, first=nn.Linear, seed=3):
    pyro.set_rng_seed(seed)
    return concat_sites(nn.Sequential(first(2, 8), nn.Tanh(), *extra, nn.Linear(8, 1)), "x", "z")


def weighted(x):
    scale = torch.tensor([1.0, 3.0, 0.5, 2.0, 1.0, 1.0])
    mask = torch.tensor([True, True, False, True, True, False])
    return poutine.scale(poutine.mask(guide, mask=mask), scale=scale)(x)


def strayed(x):
    """Draws so far out that the critic has nothing left to learn from them."""
    base = dist.Normal(torch.zeros(()), 1.0)
    with pyro.plate("data", len(x)):
        pyro.sample("z", ImplicitDistribution(lambda e: 60 + param("m") * x + e, base, ()))


CASES = {
    "adaptive": ({}, guide),
    "prior": ({"adaptive": False}, guide),
    "penalty": ({"regularizer": R1(0.5)}, guide),
    "particles": ({"num_particles": 3, "vectorize_particles": True}, guide),
    "weights": ({}, weighted),
    "confident": ({"adaptive": False}, strayed),
}


@pytest.mark.parametrize("setting", CASES)
def test_the_gradients_are_those_of_two_passes(setting):
    options, guide = CASES[setting]
    loss = {
        first: PriorContrastELBO(net(first=first), num_critic_draws=1, **options)
        for first in (nn.Linear, Opaque)
    }
    if setting == "confident":
        for each in loss.values():
            with torch.no_grad():
                each.discriminator.net[0].weight *= 0.02
                each.discriminator.net[2].weight *= 1e4
    (shared, grads), (twice, expected) = (
        value_and_grads(each, model, guide, data()) for each in loss.values()
    )
    assert shared == pytest.approx(twice, rel=1e-12)
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        assert (grad is None) == (grads[name] is None)
        if grad is not None:
            # A sample that pulls the critic with less than 1e-12 counts as that much.
            atol = 1e-6 if setting == "confident" and "discriminator" in name else 1e-9
            torch.testing.assert_close(grads[name], grad, rtol=1e-9, atol=atol)
    assert any(grad is not None and grad.abs().max() > 1e-3 for grad in expected.values())


def count(critic):
    """How often a step asks a critic for logits."""
    calls, forward = [], critic.forward
    critic.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    value_and_grads(PriorContrastELBO(critic, num_critic_draws=1), model, guide, data())
    return len(calls)


def test_critics_that_may_mix_samples_are_run_once_for_each_player():
    assert count(net()) == 2  # guide, contrast
    hooked = net()
    hooked.net[1].register_forward_hook(lambda layer, inputs, output: output - output.mean(0))
    anyhow = concat_sites(lambda features: features.mean(-1), "x", "z")
    anyhow.weight = nn.Parameter(torch.ones(()))
    for critic in (net(Centred()), net(Opaque(8, 8)), net(nn.BatchNorm1d(8)), hooked, anyhow):
        assert count(critic) == 3
    smooth, odd = MLPCritic(input_dim=2), MLPCritic(input_dim=2, activation=lambda x: x - x.mean(0))
    assert count(concat_sites(smooth, "x", "z")) == 2
    assert count(concat_sites(odd, "x", "z")) == 3


def test_a_learned_argument_is_reached_by_its_own_player_only():
    # What the critic looks up may be learned too: then there is a third gradient to give.
    x = data().requires_grad_()
    grads = []
    for first in (nn.Linear, Opaque):
        x.grad = None
        loss = PriorContrastELBO(net(first=first), num_critic_draws=1)
        value_and_grads(loss, model, guide, x)
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
