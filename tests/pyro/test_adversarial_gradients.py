# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Adversarial losses in Pyro: one pass, two passes and the usual hand-written loop agree."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.nn.functional import softplus

from pyro_spread import (
    KL,
    R1,
    AdversarialDivergence,
    ChiSquared,
    GradientPenalty,
    Jeffreys,
    JSPi,
    ReverseChiSquared,
    ReverseKL,
    SquaredHellinger,
)
from pyro_spread.ratio import Regularizer


def no_guide(*args, **kwargs):
    pass


def grads(loss, model, *args, seed=0):
    """Value, and every param's gradient by name."""
    pyro.set_rng_seed(seed)
    for param in pyro.get_param_store()._params.values():
        param.grad = None
    value = loss.loss_and_grads(model, no_guide, *args)
    found = {name: param.grad for name, param in pyro.get_param_store()._params.items()}
    return value, {name: grad for name, grad in found.items() if grad is not None}


def assert_same(one, other, rtol=1e-5):
    assert one.keys() == other.keys()
    for name, grad in one.items():
        scale = float(other[name].abs().max())
        torch.testing.assert_close(grad, other[name], rtol=rtol, atol=rtol * scale)


class Net(nn.Module):
    def __init__(self, steepness=1.0, batch_norm=False):
        super().__init__()
        norm = [nn.BatchNorm1d(8)] if batch_norm else []
        self.net = nn.Sequential(nn.Linear(2, 8), *norm, nn.Tanh(), nn.Linear(8, 1))
        self.steepness = steepness

    def forward(self, values, *args):
        return self.steepness * self.net(values["x"]).squeeze(-1)


def generator(x, mask=None):
    w = pyro.param("w", torch.tensor([0.5, 1.5]))
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        fn = dist.Delta(w * z + w.roll(1), event_dim=1)
        pyro.sample("x", fn if mask is None else fn.mask(mask), obs=x)


FORMS = {
    "js": (lambda: JSPi(0.3), "divergence"),
    "js-normalised": (lambda: JSPi(0.7, normalised=True), "divergence"),
    "non-saturating": (lambda: JSPi(0.5), "non_saturating"),
    "kl": (KL, "divergence"),
    "reverse-kl": (ReverseKL, "divergence"),
    "hellinger": (SquaredHellinger, "divergence"),
    "chi2": (ChiSquared, "divergence"),
    "reverse-chi2": (ReverseChiSquared, "divergence"),
    "jeffreys": (Jeffreys, "divergence"),
}


def by_hand(loss, x, critic, particles, mask=None):
    """The usual loop: the critic's loss on detached draws, the generator's through the critic."""
    pyro.set_rng_seed(0)
    w = pyro.param("w")
    params = list(critic.parameters())
    pi, smoothing = loss.divergence.pi, loss.label_smoothing
    share = torch.full((len(x),), 1 / len(x)) if mask is None else mask / mask.sum()
    real = x if mask is None else torch.where(mask[:, None], x, torch.zeros(()))
    total = [torch.zeros_like(p) for p in [w, *params]]
    for _ in range(particles):
        trace = poutine.trace(poutine.uncondition(generator)).get_trace(x, mask)
        draws = trace.nodes["x"]["value"]
        fake = draws if mask is None else torch.where(mask[:, None], draws, torch.zeros(()))
        at_data, at_fake = critic({"x": real}), critic({"x": fake.detach()})
        right = (1 - smoothing) * softplus(-at_data) + smoothing * softplus(at_data)
        critic_loss = pi * (share * right).sum() + (1 - pi) * (share * softplus(at_fake)).sum()
        if isinstance(loss.regularizer, R1):
            inputs = real.clone().requires_grad_()
            (slope,) = torch.autograd.grad(critic({"x": inputs}).sum(), inputs, create_graph=True)
            critic_loss = (
                critic_loss + loss.regularizer.gamma / 2 * (share * slope.square().sum(-1)).sum()
            )
        logits = critic({"x": fake})
        if loss.generator == "non_saturating":
            each = softplus(-logits)
        else:
            each = loss.divergence.generator_loss(logits - math.log(pi / (1 - pi)))
        own = [torch.autograd.grad((share * each).sum(), w)[0]]
        own += torch.autograd.grad(critic_loss, params)
        total = [t + g / particles for t, g in zip(total, own, strict=True)]
    names = ["w", *(f"discriminator$$${n}" for n, _ in critic.named_parameters())]
    return dict(zip(names, total, strict=True))


@pytest.mark.parametrize("steepness", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("form", FORMS)
def test_one_pass_two_passes_and_the_usual_loop_agree(form, steepness):
    make, generator_form = FORMS[form]
    critic, x = Net(steepness), 0.5 + torch.randn(40, 2)
    found = {}
    for update in ("one_pass", "two_pass", None):
        loss = AdversarialDivergence(critic, make(), generator=generator_form, update=update)
        found[update] = grads(loss, generator, x)[1]
    expected = by_hand(loss, x, critic, 1)
    for one in found.values():
        assert_same(one, expected)


OPTIONS = {
    "smoothing": {"label_smoothing": 0.1},
    "r1": {"regularizer": R1(2.0)},
    "particles": {"num_particles": 2},
    "all": {"regularizer": R1(0.5), "label_smoothing": 0.2, "num_particles": 3},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_keep_gradients_exact(option, masked):
    critic, x = Net(5.0), 0.5 + torch.randn(40, 2)
    mask = torch.arange(40) % 3 > 0 if masked else None
    particles = OPTIONS[option].get("num_particles", 1)
    for update in ("one_pass", "two_pass"):
        loss = AdversarialDivergence(critic, JSPi(0.3), update=update, **OPTIONS[option])
        _, found = grads(loss, generator, x, mask)
        assert_same(found, by_hand(loss, x, critic, particles, mask))


def test_the_gradient_penalty_reaches_the_critic_alone():
    critic, x = Net(5.0), torch.randn(40, 2)
    plain = grads(AdversarialDivergence(critic, update="one_pass"), generator, x)[1]
    found = [
        grads(
            AdversarialDivergence(critic, regularizer=GradientPenalty(3.0), update=update),
            generator,
            x,
        )[1]
        for update in ("one_pass", "two_pass")
    ]
    assert_same(*found)
    torch.testing.assert_close(found[0]["w"], plain["w"], rtol=0, atol=0)
    name = "discriminator$$$net.0.weight"
    assert (found[0][name] - plain[name]).abs().max() > 1e-2


def test_a_penalty_of_ones_own_reaches_the_critic_alone():
    class Small(Regularizer):
        def penalty(self, critic, data, model, weights=None):
            return critic(model).square().mean()

    critic, x = Net(5.0), torch.randn(40, 2)
    plain, found = (
        grads(AdversarialDivergence(critic, regularizer=penalty), generator, x)[1]
        for penalty in (None, Small())
    )
    torch.testing.assert_close(found["w"], plain["w"], rtol=0, atol=0)
    name = "discriminator$$$net.0.weight"
    assert (found[name] - plain[name]).abs().max() > 1e-2


def test_batch_normalisation_takes_two_passes():
    critic, x = Net(batch_norm=True), torch.randn(40, 2)
    loss = AdversarialDivergence(critic)
    _, found = grads(loss, generator, x)
    assert_same(found, by_hand(loss, x, critic, 1))
    with pytest.raises(ValueError, match=r"update=.one_pass. needs a critic .* batch norm"):
        grads(AdversarialDivergence(critic, update="one_pass"), generator, x)
    critic.eval()  # samples no longer meet
    assert_same(
        grads(AdversarialDivergence(critic, update="one_pass"), generator, x)[1],
        grads(AdversarialDivergence(critic, update="two_pass"), generator, x)[1],
    )
