# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""PriorContrastELBO in Pyro says by how many nats its critic lags; truth in closed form."""

import functools
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro_contrast import Told, data, log_ratio, sgd, silent
from pyro_contrast import guide as gaussian_guide
from pyro_contrast import model as scalar_model
from torch import nn

from pyro_spread import (
    FalseEvidenceWarning,
    ImplicitDistribution,
    PriorContrastELBO,
    compiled,
    concat_sites,
)

RHO, NUM_DATA = 0.9, 6
# KL divergence of a Gaussian with this correlation from the independent one, per datum.
LAG = -0.5 * math.log(1 - RHO**2)


def model(x):
    with pyro.plate("data", 10 * NUM_DATA, subsample=x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)


def correlated(x, size=10 * NUM_DATA, mask=True):
    tril = torch.tensor([[1.0, 0.0], [RHO, math.sqrt(1 - RHO**2)]])

    def fn(eps):
        return 0.1 * x[:, None] + 0.5 * (tril @ eps[..., None])[..., 0]

    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pyro.plate("data", size, subsample=x), poutine.mask(mask=torch.as_tensor(mask)):
        pyro.sample("z", ImplicitDistribution(fn, base, event_shape=(2,)))


def prior_ratio(values, x):
    """The log-ratio to the prior, but for the correlation."""
    z = values["z"]
    own = dist.Normal(0.1 * x[..., None].expand(z.shape), 0.5).to_event(1)
    return own.log_prob(z) - dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(z)


class Head(nn.Module):
    def forward(self, x):
        return 0.1 * x[:, None].expand(-1, 2), torch.tensor(0.5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_particles": 3, "vectorize_particles": True},
        {"num_critic_draws": 1},
        {"head": Head()},
        {"adaptive": False},
    ],
)
@pytest.mark.parametrize("mask", [True, [True, False, True, True, False, True]])
def test_the_lag_of_a_critic_in_closed_form(options, mask):
    pyro.set_rng_seed(0)
    critic = Told(silent if options.get("adaptive", True) else prior_ratio)
    loss = PriorContrastELBO(critic, num_moment_draws=60, **options)
    x = data()
    if mask is not True:  # what is masked may be anything
        x = torch.where(torch.tensor(mask), x, 1e4)
        model_of = poutine.mask(model, mask=torch.tensor(mask))
    else:
        model_of = model
    guide = functools.partial(correlated, mask=mask)
    gaps = []
    with poutine.block():
        for _ in range(150):
            _, runs = loss._run(model_of, guide, (x,), {}, 1.0)
            gaps.append(runs[0].learn(looks=True)[2])
    gaps, counts = torch.stack(gaps).T
    error = float(gaps.std()) / math.sqrt(150)
    num = NUM_DATA if mask is True else sum(mask)
    # Of a subsampled plate all, of masked data none.
    torch.testing.assert_close(counts, torch.full_like(counts, 10.0 * num))
    assert error < 0.08 * 10 * num * LAG
    assert abs(float(gaps.mean()) - 10 * num * LAG) < 4 * error


def drawn_by_numpy(x):
    base = dist.Normal(torch.zeros(()), 1.0)
    with pyro.plate("data", len(x)):
        pyro.sample("z", ImplicitDistribution(lambda eps: eps + np.random.normal(), base, ()))


@pytest.mark.parametrize("guide", [gaussian_guide, drawn_by_numpy])
def test_looking_moves_no_random_number(guide):
    """Not even where it takes draws of its own."""

    def trained(every, monkeypatch):
        monkeypatch.setattr("pyro_spread.infer._watch._GAP_EVERY", every)
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        loss = PriorContrastELBO(concat_sites(nn.Linear(2, 1), "z", "x"), adaptive=False)
        svi = SVI(scalar_model, guide, sgd(0.01, 0.01), loss)
        return [svi.step(data()) for _ in range(4)]

    with pytest.MonkeyPatch.context() as patch:
        assert trained(2, patch) == trained(1000, patch)


@pytest.fixture
def at_every_step(monkeypatch):
    """Seven blocks of sixteen looks are 112 steps then."""
    monkeypatch.setattr("pyro_spread.infer._watch._GAP_EVERY", 1)


def steps(loss, guide, count=115):
    svi = SVI(model, guide, sgd(0.0, 0.0), loss)
    for _ in range(count):
        svi.step(data())


def test_training_with_a_critic_that_lags_warns_though_it_is_rarely_right(at_every_step):
    loss = PriorContrastELBO(Told(silent), num_moment_draws=32, num_critic_draws=4)
    with pytest.warns(FalseEvidenceWarning, match=r"lies [45]\d.* own draws allow"):
        steps(loss, correlated)


@pytest.mark.parametrize("num_particles", [1, 2])
def test_compiled_steps_are_looked_at_as_often(num_particles, monkeypatch):
    monkeypatch.setattr("pyro_spread.infer._watch._GAP_EVERY", 3)
    options = {"num_moment_draws": 32, "num_critic_draws": 4, "num_particles": num_particles}
    plain = PriorContrastELBO(Told(silent), **options)
    with pytest.warns(FalseEvidenceWarning, match=r"lies [45]\d.* own draws allow"):
        steps(compiled(plain, backend="eager"), correlated, 340 // num_particles)
    looked = plain._contrast._watch._gap.blocks
    assert looked == 340 // num_particles * num_particles // 3 // 16


def test_training_with_a_critic_that_knows_does_not(at_every_step):
    loss = PriorContrastELBO(Told(silent), num_moment_draws=32, num_critic_draws=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(loss, lambda x: gaussian_in_two(x))
    assert loss._contrast._watch._gap.blocks >= 7


def gaussian_in_two(x):
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pyro.plate("data", 10 * NUM_DATA, subsample=x):
        fn = ImplicitDistribution(lambda eps: 0.3 * eps + x[:, None], base, event_shape=(2,))
        pyro.sample("z", fn)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_held_out_check_finds_the_lag(adaptive):
    pyro.set_rng_seed(2)
    loss = PriorContrastELBO(Told(silent if adaptive else prior_ratio), adaptive=adaptive)
    with pytest.warns(FalseEvidenceWarning, match="overstates the ELBO by"):
        report = loss.held_out_check(model, correlated, data(), num_steps=2, num_draws=100)
    assert abs(report.gap - 10 * NUM_DATA * LAG) < 4 * report.standard_error
    assert report.is_known()


def bumps(x):
    """Two bumps of 0.1 at ±0.5: its Gaussian is two thirds of a nat away."""

    def fn(eps):
        return 0.7 * x + 0.5 * torch.sign(eps[..., 0]) + 0.1 * eps[..., 1]

    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", ImplicitDistribution(fn, base, ()))


def bumps_ratio(values, x):
    z = values["z"]
    each = [dist.Normal(0.7 * x + at, 0.1).log_prob(z) - math.log(2) for at in (-0.5, 0.5)]
    return torch.logaddexp(*each) - dist.Normal(0.3, 1.0).log_prob(z)


def test_where_no_other_critic_is_as_good_nothing_is_known():
    pyro.set_rng_seed(3)
    loss = PriorContrastELBO(Told(bumps_ratio), adaptive=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FalseEvidenceWarning)
        report = loss.held_out_check(scalar_model, bumps, data(), num_steps=2, num_draws=40)
    assert not report.is_known()
    assert str(report).endswith("not known")
    assert report.gap < -2


def test_the_check_leaves_no_gradient_behind():
    head = nn.Linear(1, 2)

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = head

        def forward(self, x):
            out = self.net(x[:, None])
            return out[:, 0], out[:, 1].exp()

    loss = PriorContrastELBO(concat_sites(nn.Linear(2, 1), "z", "x"), head=Linear())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FalseEvidenceWarning)
        loss.held_out_check(scalar_model, gaussian_guide, data(), num_steps=3, num_draws=4)
    assert all(
        param.grad is None for param in [*head.parameters(), *loss.discriminator.parameters()]
    )


def test_an_exact_critic_of_the_prior_passes():
    loss = PriorContrastELBO(Told(log_ratio), adaptive=False)
    report = loss.held_out_check(scalar_model, gaussian_guide, data(), num_steps=2, num_draws=60)
    assert report.is_known()
    assert not report.is_false()


@pytest.mark.filterwarnings("ignore:the critic of the training run")
def test_a_check_of_a_critic_with_a_frozen_layer():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    net[0].requires_grad_(False)
    loss = PriorContrastELBO(concat_sites(net, "z", "x"), adaptive=False)
    found = loss.held_out_check(scalar_model, gaussian_guide, data(), num_steps=2, num_draws=4)
    assert math.isfinite(found.gap)
