# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Adversarial losses in Pyro: known divergences, and both players' exact gradients."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from scipy import special
from torch import nn

from pyro_spread import (
    KL,
    AdversarialDivergence,
    ChiSquared,
    GaussianNoise,
    Jeffreys,
    JSPi,
    ReverseChiSquared,
    ReverseKL,
    SquaredHellinger,
    SupportMismatchWarning,
    TotalVariation,
    WassersteinCritic,
    concat_sites,
    two_player,
)
from pyro_spread.ratio import QuadraticCritic
from spread_analysis import reference

QS = [(1.0, 2.0), (0.0, 1.5), (2.0, 1.0)]
COUNT = 10_000


def no_guide(*args, **kwargs):
    pass


def location_scale(x, eps):
    """Draws loc + exp(log_scale) eps; the noise is an argument, so that nothing is random."""
    loc = pyro.param("loc", torch.tensor(1.0))
    log_scale = pyro.param("log_scale", torch.tensor(math.log(2.0)))
    with pyro.plate("data", len(eps)):
        pyro.sample("x", dist.Delta(loc + log_scale.exp() * eps), obs=x)


def grads(loss, model, *args, seed=0):
    """Value, and every param's gradient by name."""
    pyro.set_rng_seed(seed)
    for param in pyro.get_param_store()._params.values():
        param.grad = None
    value = loss.loss_and_grads(model, no_guide, *args)
    found = {name: param.grad for name, param in pyro.get_param_store()._params.items()}
    return value, {name: grad for name, grad in found.items() if grad is not None}


# --- values


def _fit(critic, pi, x, eps):
    """Full-batch training of the critic alone: the loss is H(pi) less the reported value."""
    loss = AdversarialDivergence(concat_sites(critic, "x"), JSPi(pi), name=f"fit{pi}")
    loss.loss(location_scale, no_guide, x, eps)
    optimiser = torch.optim.LBFGS(critic.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        return JSPi(pi).upper - loss.loss_and_grads(location_scale, no_guide, x, eps)

    optimiser.step(closure)


def _references(q):
    """name -> (divergence, its value, how the mean over one sample scatters)"""
    loc, scale = q
    x = np.linspace(-30.0, 30.0, 60_001)
    p = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    other = np.exp(-0.5 * ((x - loc) / scale) ** 2) / scale / math.sqrt(2 * math.pi)
    step = x[1] - x[0]
    bhattacharyya = step * np.sqrt(p * other).sum()
    kl, reverse = reference.kl_normals(0, 1, *q), reference.kl_normals(*q, 0, 1)
    log_ratio = -0.5 * x**2 + 0.5 * ((x - loc) / scale) ** 2 + math.log(scale)
    spread_p = math.sqrt(step * (p * (log_ratio - kl) ** 2).sum())
    spread_q = math.sqrt(step * (other * (log_ratio + reverse) ** 2).sum())
    return {
        "kl": (KL(), kl, spread_p),
        "reverse": (ReverseKL(), reverse, spread_q),
        "jeffreys": (Jeffreys(), kl + reverse, math.hypot(spread_p, spread_q)),
        "hellinger": (SquaredHellinger(), 2 - 2 * bhattacharyya, 1.0),
        "variation": (TotalVariation(), 0.5 * step * np.abs(p - other).sum(), 1.0),
    }


@pytest.mark.parametrize("q", QS)
def test_a_fitted_quadratic_critic_reports_the_divergence(q):
    data = torch.randn(2, COUNT)
    eps = torch.randn(2, COUNT)
    pyro.param("loc", torch.tensor(q[0]))
    pyro.param("log_scale", torch.tensor(math.log(q[1])))
    for pi in (0.1, 0.5, 0.9):
        critic = QuadraticCritic(input_dim=1)
        # The value is clipped at zero, which must not stop the fit before it began.
        nn.init.constant_(critic.constant, math.log(pi / (1 - pi)))
        _fit(critic, pi, data[0], eps[0])
        loss = AdversarialDivergence(concat_sites(critic, "x"), JSPi(pi), name=f"fit{pi}")
        exact = reference.js_divergence_normals(0, 1, *q, pi)
        for side in (0, 1):  # seen in training, and held out
            value = loss.loss(location_scale, no_guide, data[side], eps[side])
            assert value == pytest.approx(exact, abs=4 * 0.003), (pi, side)
        if pi != 0.5:
            continue
        for name, (divergence, expected, spread) in _references(q).items():
            form = "non_saturating" if name == "variation" else "divergence"
            loss = AdversarialDivergence(
                concat_sites(critic, "x"), divergence, generator=form, name="fit0.5"
            )
            value = loss.loss(location_scale, no_guide, data[0], eps[0])
            # Sampling, and as much again from the critic's own error.
            tolerance = 4 * max(0.003, 2 * spread / math.sqrt(COUNT))
            assert value == pytest.approx(expected, abs=tolerance), name


class OptimalCritic(nn.Module):
    """The best logit of the model's current params, held fixed."""

    def __init__(self, pi, q):
        super().__init__()
        self.p, self.q = dist.Normal(0.0, 1.0), dist.Normal(*q)
        self.log_odds = math.log(pi / (1 - pi))

    def forward(self, values, *args):
        x = values["x"]
        return self.p.log_prob(x) - self.q.log_prob(x) + self.log_odds


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("update", ["one_pass", "two_pass"])
def test_generator_gradients_at_the_optimal_critic(pi, update):
    q = (1.0, 2.0)
    js = reference.divergence_gradient_normals(0, 1, *q, pi)
    kl = reference.divergence_gradient_normals(0, 1, *q, pi, "kl")
    reverse = reference.divergence_gradient_normals(0, 1, *q, pi, "reverse_kl")

    class PiReverse(ReverseKL):
        pass

    class PiKL(KL):
        pass

    PiReverse.pi = PiKL.pi = pi  # the gradient of both is the same whatever pi
    cases = {
        "saturating": (JSPi(pi), "divergence", js),
        "normalised": (JSPi(pi, normalised=True), "divergence", np.array(js) / (pi - pi**2)),
        "non-saturating": (
            JSPi(pi),
            "non_saturating",
            np.array(reverse) - np.array(js) / (1 - pi),
        ),
        "reverse-kl": (PiReverse(), "divergence", reverse),
        "kl": (PiKL(), "divergence", kl),
    }
    # The midpoints of equal shares of probability, so that the mean is a quadrature.
    eps = torch.as_tensor(special.ndtri((np.arange(20_000) + 0.5) / 20_000))
    for name, (divergence, form, expected) in cases.items():
        critic = OptimalCritic(pi, q)
        loss = AdversarialDivergence(critic, divergence, generator=form, update=update)
        _, found = grads(loss, location_scale, torch.randn(10), eps)
        gradient = [float(found["loc"]), float(found["log_scale"]) / q[1]]
        np.testing.assert_allclose(gradient, expected, rtol=2e-3, atol=2e-4, err_msg=name)


# --- extremes


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


class Line(nn.Module):
    def __init__(self, slope, offset=0.0):
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.tensor(slope)), offset

    def forward(self, values, *args):
        return self.slope * values["x"] + self.offset


# A slope of 1e30 where float32 can hold the gradient at all.
BOUNDED = ("js", "js-normalised", "non-saturating", "reverse-kl")
EXTREMES = [(form, slope) for form in FORMS for slope in (1.0, 80.0, 1e3)]


@pytest.mark.parametrize(("form", "slope"), EXTREMES + [(form, 1e30) for form in BOUNDED])
@pytest.mark.parametrize("offset", [-90.0, 0.0, 90.0])
def test_extreme_logits_leave_no_nan(form, slope, offset):
    make, generator_form = FORMS[form]
    x, eps = torch.randn(20), torch.randn(20)
    found = []
    for update in ("one_pass", "two_pass"):
        pyro.clear_param_store()
        loss = AdversarialDivergence(
            Line(slope, offset), make(), generator=generator_form, update=update
        )
        value, gradients = grads(loss, location_scale, x, eps)
        assert not math.isnan(value)
        found.append(gradients)
    for name, gradient in found[0].items():
        assert torch.isfinite(gradient)
        torch.testing.assert_close(gradient, found[1][name], rtol=3e-5, atol=3e-7)


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
def test_the_value_stays_between_zero_and_the_entropy(pi):
    upper = reference.class_entropy(pi)
    for slope in (-50.0, -1.0, 0.0, 1.0, 50.0):
        for offset in (-5.0, 0.0, 5.0):
            pyro.clear_param_store()
            loss = AdversarialDivergence(Line(slope, offset), JSPi(pi))
            value = loss.loss(location_scale, no_guide, torch.randn(50), torch.randn(50))
            assert 0 <= value <= upper + 1e-6


def _apart(noise, steps, pi, learning_rate):
    def model(x):
        loc = pyro.param("loc", torch.tensor(-4.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.01))
            pyro.sample("x", dist.Delta(loc + z), obs=x)

    critic = concat_sites(nn.Linear(1, 1), "x")
    loss = AdversarialDivergence(critic, JSPi(pi), noise)
    still, fast = pyro.optim.SGD({"lr": 0.0}), pyro.optim.Adam({"lr": learning_rate})
    svi = SVI(model, no_guide, two_player(still, fast), loss)
    x = 4 + 0.01 * torch.randn(64)
    return [svi.step(x) for _ in range(steps)]


def test_disjoint_supports_reach_the_entropy_and_warn_once():
    with pytest.warns(SupportMismatchWarning, match=r'noise=\{"x": GaussianNoise') as caught:
        values = _apart(None, 400, 0.1, 1.0)
    assert len([w for w in caught if w.category is SupportMismatchWarning]) == 1
    assert values[-1] == pytest.approx(reference.class_entropy(0.1), abs=1e-3)


def test_noise_makes_supports_overlap():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = _apart({"x": GaussianNoise(8.0)}, 400, 0.5, 0.1)
    # Two Gaussians one deviation apart.
    assert np.mean(values[200:]) == pytest.approx(0.1114215, abs=0.02)


# --- Wasserstein


def test_wasserstein_value_and_gradients_on_a_line():
    x, eps = torch.randn(30), torch.randn(20)
    loss = WassersteinCritic(Line(1.5), gradient_penalty=0)
    value, found = grads(loss, location_scale, x, eps)
    draws = 1.0 + 2.0 * eps
    assert value == pytest.approx(1.5 * float(x.mean() - draws.mean()), rel=1e-5)
    torch.testing.assert_close(found["discriminator$$$slope"], draws.mean() - x.mean())
    torch.testing.assert_close(found["loc"], torch.tensor(-1.5))
    torch.testing.assert_close(found["log_scale"], -1.5 * 2.0 * eps.mean())

    pyro.clear_param_store()
    loss = WassersteinCritic(Line(1.5), gradient_penalty=4.0)
    _, penalised = grads(loss, location_scale, x, eps[:20].repeat(2)[:30])
    draws = 1.0 + 2.0 * eps.repeat(2)[:30]
    # The slope of 4 (|c| - 1)² at 1.5 is 4.
    torch.testing.assert_close(penalised["discriminator$$$slope"], draws.mean() - x.mean() + 4.0)


def test_wasserstein_finds_a_location():
    def model(x):
        loc = pyro.param("loc", torch.tensor(-1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.1))
            pyro.sample("x", dist.Delta(loc + z), obs=x)

    # A heavier penalty would not let a straight line change its direction.
    loss = WassersteinCritic(concat_sites(nn.Linear(1, 1), "x"), gradient_penalty=0.1)
    adam = [pyro.optim.Adam({"lr": 0.02, "betas": (0.0, 0.9)}) for _ in range(2)]
    svi = SVI(model, no_guide, two_player(*adam, discriminator_steps=3), loss)
    x = 1 + 0.1 * torch.randn(64)
    locations = []
    for _ in range(600):
        svi.step(x)
        locations.append(pyro.param("loc").item())
    assert np.mean(locations[-200:]) == pytest.approx(1.0, abs=0.2)
