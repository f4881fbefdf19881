# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""How far PriorContrastELBO can be believed in Pyro: warnings, a second opinion, and training."""

import copy
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro_contrast import Told, data, guide, log_ratio, model, sgd, silent, snapshot, unchanged
from torch import nn

from pyro_spread import (
    GaussianNoise,
    ImplicitDistribution,
    JointContrastELBO,
    PriorContrastELBO,
    concat_sites,
    two_player,
)
from pyro_spread.ratio import QuadraticCritic
from spread_analysis import FalseEvidenceWarning


def mlp(inputs=1, width=16):
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    )


# --- the monitor


def train(loss, steps, model=model, guide=guide):
    svi = SVI(model, guide, sgd(0.0, 0.0), loss)
    for _ in range(steps):
        svi.step(data())


def far_guide(x):
    with pyro.plate("data", len(x)):
        fn = ImplicitDistribution(lambda eps: 9 + 0.01 * eps, dist.Normal(torch.zeros(()), 1.0), ())
        pyro.sample("z", fn)


def collapsed_guide(x):
    spread = torch.ones(len(x)).index_fill(0, torch.tensor([2]), 0.0)
    fn = ImplicitDistribution(lambda e: x + spread * e, dist.Normal(torch.zeros(()), 1.0), ())
    with pyro.plate("data", len(x)):
        pyro.sample("z", fn)


def test_the_check_needs_two_draws():
    loss = PriorContrastELBO(Told(silent))
    with pytest.raises(ValueError, match=r"held_out_check: num_draws must be .* at least 2, got 1"):
        loss.held_out_check(model, guide, data(), num_draws=1)


def test_the_check_of_a_collapsed_guide_says_false_evidence():
    loss = PriorContrastELBO(Told(lambda values, x: 0 * values["z"]), adaptive=False)
    with pytest.warns(FalseEvidenceWarning, match=r"by nan"):
        report = loss.held_out_check(model, collapsed_guide, data(), num_steps=2, num_draws=2)
    assert math.isfinite(report.estimate)
    assert math.isnan(report.fresh_estimate)
    assert math.isnan(report.gap)
    assert report.is_false()
    loss = PriorContrastELBO(Told(silent))  # this one cannot report anything itself
    with pytest.raises(ValueError, match="score_parts at site 'z'") as raised:
        loss.held_out_check(model, collapsed_guide, data(), num_steps=2, num_draws=2)
    assert "all draws for a datum are the same" in str(raised.value.__cause__)


def test_a_critic_that_sees_no_overlap_warns_once():
    loss = PriorContrastELBO(Told(lambda values, x: 4 * (values["z"] - 5)), adaptive=False)
    train(loss, 49, guide=far_guide)
    with pytest.warns(FalseEvidenceWarning, match=r"almost perfectly.*held_out_check"):
        train(loss, 10, guide=far_guide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(loss, 60, guide=far_guide)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_monitor_is_silent_where_there_is_overlap(adaptive):
    loss = PriorContrastELBO(Told(silent if adaptive else log_ratio), adaptive=adaptive)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(loss, 80)
        loss.loss(model, far_guide, data())


@pytest.mark.parametrize("logit", [5.0, -5.0])
def test_a_critic_that_is_right_on_one_side_only_is_no_perfect_one(logit):
    loss = PriorContrastELBO(Told(lambda values, x: logit + silent(values)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(loss, 60)


def test_looking_is_no_training():
    loss = PriorContrastELBO(Told(lambda values, x: 4 * (values["z"] - 5)), adaptive=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(80):
            loss.logits(model, far_guide, data())
            loss.loss(model, far_guide, data())


# --- the held-out check


def curved_guide(x):
    """Far from a Gaussian: only a trained critic knows its density."""
    m = pyro.param("m", torch.tensor(0.7))

    def fn(eps):
        return m * x + 0.5 * torch.sign(eps) + 0.1 * eps

    with pyro.plate("data", len(x)):
        pyro.sample("z", ImplicitDistribution(fn, dist.Normal(torch.zeros(()), 1.0), ()))


class Knowing(Told):
    """Told the log-ratio to the contrast of the run; afresh, that to the adaptive one."""

    def reset_parameters(self):
        self.fn = silent


@pytest.mark.parametrize(
    "options",
    [
        {"adaptive": False},
        {"adaptive": False, "num_particles": 3},
        {"adaptive": False, "annealing": lambda x: 0.3},
        {"adaptive": True},
    ],
)
def test_a_good_critic_passes_the_check(options):
    critic = Knowing(silent if options["adaptive"] else log_ratio)
    loss = PriorContrastELBO(critic, num_moment_draws=200, **options)
    loss.loss_and_grads(model, guide, data())
    before = snapshot(), copy.deepcopy(critic.state_dict()), loss.steps_done
    with warnings.catch_warnings():
        warnings.simplefilter("error", FalseEvidenceWarning)
        report = loss.held_out_check(model, guide, data(), num_steps=3, num_draws=100)
    assert unchanged(before[0])
    assert critic.state_dict() == before[1]
    assert loss.steps_done == before[2]
    assert report.num_draws == 100
    assert report.gap == pytest.approx(report.estimate - report.fresh_estimate, abs=1e-4)
    assert abs(report.gap) < 2.5 * report.standard_error + 0.1
    # The draws are shared: both estimates scatter by much more than their difference.
    assert report.standard_error < 0.08


@pytest.mark.parametrize(("adaptive", "by_site"), [(True, False), (False, True)])
def test_an_untrained_critic_fails_the_check(adaptive, by_site):
    critic = concat_sites(mlp(), "z")
    loss = PriorContrastELBO({"z": critic} if by_site else critic, adaptive=adaptive)
    loss.loss_and_grads(model, curved_guide, data())
    before = snapshot(), copy.deepcopy(critic.state_dict())
    with pytest.warns(FalseEvidenceWarning, match="overstates the ELBO by .* nats"):
        report = loss.held_out_check(
            model, curved_guide, data(), num_steps=150, learning_rate=0.02, num_draws=30
        )
    assert unchanged(before[0])
    assert all(torch.equal(value, before[1][n]) for n, value in critic.state_dict().items())
    assert report.is_false()
    # KL[q || N(moments)] of the two bumps: log of the sds, less log 2 for the choice.
    sd = math.sqrt(0.5**2 + 2 * 0.05 * math.sqrt(2 / math.pi) + 0.1**2)
    assert report.gap > 6 * 0.7 * (math.log(sd / 0.0603) - math.log(2))


def test_the_check_can_be_made_with_noise_before_any_step():
    def delta_model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(z), obs=x)

    noise = {"x": GaussianNoise(0.3)}
    loss = PriorContrastELBO(concat_sites(nn.LazyLinear(1), "z", "x"), noise, num_moment_draws=50)
    loss.loss(delta_model, guide, data())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FalseEvidenceWarning)
        report = loss.held_out_check(delta_model, guide, data(), num_steps=5, num_draws=5)
    assert math.isfinite(report.gap)


# --- the log-ratio at the optimum, which for Gaussians is a quadratic form


def assert_learned(loss, model, guide, x, steps, exact, atol):
    """Critic-only training; then the critic's matrix, vector and constant."""
    loss.loss(model, guide, x)  # lazy layers see their input
    critic = loss.discriminator.net
    optim = torch.optim.Adam(critic.parameters(), lr=0.2, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
    for _ in range(steps):
        optim.zero_grad()
        loss.differentiable_loss(model, guide, x).backward()
        optim.step()
        schedule.step()
    matrix = (critic.matrix + critic.matrix.T) / 2
    for learned, wanted in zip((matrix, critic.vector, critic.constant), exact, strict=True):
        torch.testing.assert_close(learned.detach(), torch.tensor(wanted), atol=atol, rtol=0)


def test_the_prior_contrast_learns_the_analytic_log_ratio():
    critic = concat_sites(QuadraticCritic(), "z", "x")
    loss = PriorContrastELBO(critic, adaptive=False, num_critic_draws=20)
    m, s, mu = 0.7, 0.6, 0.3
    # log N(z; m x, s²) - log N(z; mu, 1)
    matrix = [[(1 - s**-2) / 2, m / s**2 / 2], [m / s**2 / 2, -((m / s) ** 2) / 2]]
    exact = matrix, [-mu, 0.0], [mu**2 / 2 - math.log(s)]
    assert_learned(loss, model, guide, torch.linspace(-2, 2, 100), 300, exact, atol=0.05)


def test_the_joint_contrast_learns_the_analytic_log_ratio():
    loss = JointContrastELBO(concat_sites(QuadraticCritic(), "z", "x"))
    m, s, mu, noise = 0.7, 0.6, 0.3, 0.5
    # log N(z; m x, s²) N(x; 0, 1) - log N(z; mu, 1) N(x; z, noise²)
    matrix = [
        [(1 - s**-2 + noise**-2) / 2, (m / s**2 - noise**-2) / 2],
        [(m / s**2 - noise**-2) / 2, (noise**-2 - (m / s) ** 2 - 1) / 2],
    ]
    exact = matrix, [-mu, 0.0], [mu**2 / 2 + math.log(noise) - math.log(s)]
    x = torch.special.ndtri((torch.arange(2000) + 0.5) / 2000)
    assert_learned(loss, model, guide, x, 400, exact, atol=0.1)


# --- training

# (s, x) and log p(x) of z ~ N(0, 1), x ~ N(z, s²).
CASES = {(1.0, 2.0): -2.26551212, (0.1, 2.0): -2.90411172, (0.1, 5.0): -13.30015132}


def conjugate(s, x, steps, batch=64, rate=2e-3, adaptive=True):
    """Value per datum, mean and sd of a guide trained on one datum, many times over."""
    net, noise = mlp(4, 32), dist.Normal(torch.zeros(4), 1.0).to_event(1)
    nn.init.zeros_(net[-1].weight)

    def program(data):
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, s), obs=data)

    def implicit(data):
        pyro.module("net", net)
        loc, log_scale = (pyro.param(name, torch.tensor(0.0)) for name in ("loc", "log_scale"))

        def fn(eps):
            return loc + log_scale.exp() * eps[..., 0] + net(eps).squeeze(-1)

        with pyro.plate("data", len(data)):
            pyro.sample("z", ImplicitDistribution(fn, noise, ()))

    loss = PriorContrastELBO(
        concat_sites(mlp(1, 32), "z"), adaptive=adaptive, annealing=max(1, steps // 3)
    )

    def adam(rate):
        decay = 0.1 ** (1 / steps)
        return pyro.optim.ClippedAdam({"lr": rate, "betas": (0.5, 0.999), "lrd": decay})

    svi = SVI(program, implicit, two_player(adam(rate), adam(2 * rate), 2), loss)
    x = torch.full((batch,), x)
    for _ in range(2 * steps):
        svi.step(x)
    value = -sum(svi.evaluate_loss(x) for _ in range(200)) / 200 / batch
    with torch.no_grad():
        z = poutine.trace(implicit).get_trace(x[:1].expand(20_000)).nodes["z"]["value"]
    return value, float(z.mean()), float(z.std())


def test_a_short_training_reaches_the_evidence():
    value, mean, sd = conjugate(1.0, 2.0, steps=300, rate=8e-3)
    assert abs(value - CASES[1.0, 2.0]) < 0.02
    assert abs(mean - 1) < 0.08
    assert abs(sd / math.sqrt(0.5) - 1) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize(("s", "x"), CASES)
def test_training_reaches_the_evidence_at_any_divergence(s, x):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FalseEvidenceWarning)
        value, mean, sd = conjugate(s, x, steps=5000, batch=256)
    assert abs(value - CASES[s, x]) < 0.01
    assert abs(mean - x / (1 + s**2)) < 0.05 * s
    assert 0.97 < sd / (s / math.sqrt(1 + s**2)) < 1.03


@pytest.mark.slow
def test_the_plain_contrast_reports_false_evidence_and_says_so():
    with pytest.warns(FalseEvidenceWarning, match="may lie far above the evidence"):
        value, _, _ = conjugate(0.1, 5.0, steps=2000, adaptive=False)
    assert value > CASES[0.1, 5.0] + 1
