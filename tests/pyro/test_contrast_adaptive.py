# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The adaptive contrast of PriorContrastELBO in Pyro: guides that need no critic beside it."""

import functools

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro_contrast import (
    VALUES,
    Told,
    assert_equal,
    data,
    exact_loss,
    guide,
    model,
    normal,
    silent,
    value_and_grads,
)
from torch import nn

from pyro_spread import PriorContrastELBO

pytestmark = pytest.mark.usefixtures("double")


def mean_and_error(values):
    values = torch.stack(values)
    return values.mean(0), values.std(0) / len(values) ** 0.5


@pytest.mark.parametrize("num_draws", [4, 32])
def test_a_gaussian_guide_needs_no_critic_whatever_the_number_of_draws(num_draws):
    options = {"num_particles": 4000, "vectorize_particles": True, "max_plate_nesting": 1}
    loss = PriorContrastELBO(Told(silent), num_moment_draws=num_draws, **options)
    found = []
    for seed in range(16):
        value, grads = value_and_grads(loss, model, guide, data(), seed=seed)
        found.append(torch.stack([torch.tensor(value), *(grads[name] for name in VALUES)]))
    mean, error = mean_and_error(found)
    exact = [torch.tensor(value, requires_grad=True) for value in VALUES.values()]
    value = exact_loss(*exact, data())
    wanted = torch.stack([value.detach(), *torch.autograd.grad(value, exact)])
    assert (error < 0.08).all()
    assert error[0] < 0.03
    assert ((mean - wanted).abs() < 4.5 * error).all(), (mean - wanted) / error


def test_with_a_head_that_knows_the_guide_the_density_is_exact():
    class RightHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.m, self.s = (nn.Parameter(torch.tensor(VALUES[name])) for name in "ms")

        def forward(self, x):
            return self.m * x, self.s

    loss = PriorContrastELBO(Told(silent), head=RightHead(), num_critic_draws=1)
    ours = value_and_grads(loss, model, guide, data())
    twin = functools.partial(guide, twin=True)
    stock = value_and_grads(Trace_ELBO(), model, twin, data())
    assert_equal(ours, stock, 1e-6)
    # The head fits the guide's draws by maximum likelihood; its pull is on its own params only.
    pyro.set_rng_seed(0)
    z = data() * 0.7 + 0.6 * torch.randn(6)
    m, s = (torch.tensor(VALUES[name], requires_grad=True) for name in "ms")
    (-normal(z, m * data(), s).mean()).backward()
    torch.testing.assert_close(ours[1]["discriminator$$$head$$$m"], m.grad)
    torch.testing.assert_close(ours[1]["discriminator$$$head$$$s"], s.grad)
