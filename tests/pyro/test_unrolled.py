# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Unrolled critics in Pyro: nets with buffers, what a step leaves behind, and what is refused."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import ring
import torch
from pyro.infer import SVI
from torch import nn

from pyro_spread import (
    R1,
    AdversarialDivergence,
    GaussianNoise,
    JSPi,
    concat_sites,
    two_player,
)
from pyro_spread.ratio import MLPCritic, logistic_loss
from spread_core.nonfinite import NonFiniteError

K, SIZE = 3, 4.0


def no_guide(*args):
    pass


def model(x, z):
    w = pyro.param("w", torch.tensor([0.5, 1.5], dtype=x.dtype))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Delta(w * z, event_dim=1), obs=x)


def data(count=40):
    torch.manual_seed(0)
    return 1 + torch.randn(count, 2).double(), torch.randn(count, 2).double()


def step(critic, x, z, **options):
    """The value, and the gradients of w and of the critic."""
    pyro.clear_param_store()
    critic.zero_grad()
    value = AdversarialDivergence(critic, JSPi(0.3), **options).loss_and_grads(
        model, no_guide, x, z
    )
    return value, pyro.param("w").grad, [param.grad for param in critic.parameters()]


def test_a_frozen_critic_does_not_follow():
    x, z = data()
    critic = concat_sites(nn.Linear(2, 1).double().requires_grad_(False), "x")
    ahead, alone = (
        step(critic, x, z, update="two_pass", generator="non_saturating", unroll=k) for k in (2, 0)
    )
    torch.testing.assert_close(ahead, alone)


def test_a_critic_with_batch_normalisation_is_followed_and_left_as_it_was():
    """Against SGD of a copy: the slope of its loss in w, by central differences."""
    x, z = data()
    net = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
    net[0].bias.requires_grad_(False)  # stays where it is in the unrolled steps too

    def best_loss(w):
        twin = copy.deepcopy(net)
        fakes = w * z
        sgd = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], SIZE)
        for _ in range(K):
            sgd.zero_grad()
            logistic_loss(twin(x)[:, 0], twin(fakes)[:, 0], 0.3).backward()
            sgd.step()
        return logistic_loss(twin(x)[:, 0], twin(fakes)[:, 0], 0.3).item()

    start, found = torch.tensor([0.5, 1.5]).double(), []
    for move in 1e-5 * torch.eye(2).double():
        found.append((best_loss(start - move) - best_loss(start + move)) / 2e-5)
    twin = copy.deepcopy(net)
    plain = step(concat_sites(twin, "x"), x, z)
    ahead = step(concat_sites(net, "x"), x, z, unroll=K, unroll_step_size=SIZE)
    torch.testing.assert_close(ahead[1], torch.tensor(found).double(), rtol=1e-6, atol=1e-9)
    assert (ahead[1] - plain[1]).abs().max() > 1e-4
    assert ahead[0] == plain[0]
    for one, other in zip(ahead[2], plain[2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "make",
    [lambda: MLPCritic([8], spectral_norm=True), lambda: nn.LazyLinear(1)],
    ids=["spectral norm", "lazy"],
)
def test_whole_steps(make):
    """With noise, a lazy penalty and several particles, in an unmodified SVI."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    loss = AdversarialDivergence(
        concat_sites(make(), "x"),
        JSPi(0.5),
        {"x": GaussianNoise(0.3)},
        regularizer=R1(0.1, every=4),
        num_particles=2,
        unroll=2,
    )
    adams = [pyro.optim.Adam({"lr": 0.05}) for _ in range(2)]
    svi = SVI(model, loss.register(model, no_guide), two_player(*adams), loss)
    x, z = (side.float() for side in data())
    values = [svi.step(x, z) for _ in range(60)]
    assert all(map(math.isfinite, values))
    # The data are N(1, 1), the draws N(0, w²): w grows beyond one in both places.
    assert (pyro.param("w") > 0.9).all()


def test_evaluation_looks_at_the_critic_as_it_is():
    x, z = data()
    critic = concat_sites(nn.Linear(2, 1).double(), "x")
    values = [
        AdversarialDivergence(critic, unroll=k, name=f"d{k}").loss(model, no_guide, x, z)
        for k in (0, 3)
    ]
    assert values[0] == values[1]


def test_steps_that_are_too_long_are_named():
    x, z = data()
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)).double()
    with pytest.raises(
        NonFiniteError, match=r"after its 9 unrolled steps of size 1e\+90"
    ) as caught:
        step(concat_sites(net, "x"), x, z, unroll=9, unroll_step_size=1e90)
    assert "Use a smaller unroll_step_size" in str(caught.value)


def test_gradient_through_the_module():
    """``loss(model, guide)`` for torch.optim: the same two gradients."""

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.5, 1.5]).double())

        def forward(self, x, z):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Delta(self.w * z, event_dim=1), obs=x)

    class Empty(nn.Module):
        def forward(self, x, z):
            pass

    x, z = data()
    critic = concat_sites(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double(), "x")
    _, by_svi, of_critic = step(critic, x, z, unroll=2)
    of_critic = [grad.clone() for grad in of_critic]
    pyro.clear_param_store()
    critic.zero_grad()
    program = Program()
    AdversarialDivergence(critic, JSPi(0.3), unroll=2)(program, Empty())(x, z).backward()
    torch.testing.assert_close(program.w.grad, by_svi)
    torch.testing.assert_close([param.grad for param in critic.parameters()], of_critic)


@pytest.mark.slow
def test_modes_on_a_ring_are_kept():
    """Without R1, a critic thirty times slower than the generator; one seed of five."""
    (plain,), (ahead,) = ring.in_pyro(0, 4000, [0]), ring.in_pyro(5, 4000, [0])
    assert ahead.modes > plain.modes
