# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Unrolled critics: the exact gradient of the generator through steps of the critic."""

import numpy as np
import pytest
from every import DIVERGENCES, TRAINED
from flax import linen
from torch import nn
from twins import CRITIC, FlaxNet, NumPyro, Pyro, compare, in_both, no_guide, torch_net, weights

RNG = np.random.default_rng(7)
X, Z = 1 + RNG.normal(size=(40, 1)), RNG.normal(size=(40, 1))
MASK = RNG.random(40) < 0.7
THETA, W = 0.8, 0.6


class TorchSlope(nn.Module):
    """A critic with one param: its logit is w x + w² x² / 4, or w x alone."""

    def __init__(self, squared):
        super().__init__()
        self.net = nn.Linear(1, 1, bias=False).double()
        self.net.weight.data.fill_(W)
        self.squared = squared

    def forward(self, x):
        line = self.net(x)
        return line + line**2 / 4 if self.squared else line


class FlaxSlope(linen.Module):
    """Its twin."""

    squared: bool

    @linen.compact
    def __call__(self, x):
        line = linen.Dense(1, use_bias=False)(x)
        return line + line**2 / 4 if self.squared else line


def step(b, make, squared=True, masked=False, **options):
    """Value of a loss, and the gradients of theta, which scales the draws, and of w."""

    def model(x, z):
        theta = b.param("theta", THETA)
        with b.plate("data", len(z)):
            fn = b.dist.Delta(theta * z)
            fn = fn.mask(b.array(MASK)[:, None]) if masked else fn
            b.sample("x", fn.to_event(1), obs=x)

    net = TorchSlope(squared)
    critic = b.package.concat_sites(b.pick(net, FlaxSlope(squared)), "x")
    loss = make(b.package)(critic, **{n: o(b.package) for n, o in options.items()})
    params = {"theta": THETA}
    value, grads = b.loss_and_grads(loss, model, no_guide, X, Z, params=params, nets={CRITIC: net})
    slope = float(np.squeeze(grads[CRITIC]["Dense_0"]["kernel"]))
    return float(value), float(grads["theta"]), slope


# --- a quadratic game


def quadratic(package):
    """A game in which the critic's loss is quadratic in w."""

    class Game(package.AdversarialDivergence):
        def _critic_loss(self, logits):
            return ((logits.p - 1) ** 2).mean() / 2 + (logits.q**2).mean() / 2

    return Game


@in_both
@pytest.mark.parametrize("generator", ["non_saturating", "divergence"])
@pytest.mark.parametrize("k", [1, 50])
def test_a_quadratic_game_has_the_exact_gradient(b, k, generator):
    """The critic w x has the loss A w² / 2 - c w + 1/2, so that w goes to c / A as (1 - η A)^k."""
    size, made = 0.1, {"divergence": lambda p: p.ReverseKL(), "generator": lambda p: generator}
    plain = step(b, quadratic, False, **made)
    ahead = {"unroll": lambda p: k, "unroll_step_size": lambda p: size}
    value, slope, critic = step(b, quadratic, False, **made, **ahead)
    assert (value, critic) == (plain[0], plain[2])
    a, c = (X**2).mean() + THETA**2 * (Z**2).mean(), X.mean()
    a_slope, best, rate = 2 * THETA * (Z**2).mean(), c / a, 1 - size * a
    w = best + rate**k * (W - best)
    best_slope = -c * a_slope / a**2
    w_slope = best_slope * (1 - rate**k) - k * rate ** (k - 1) * size * a_slope * (W - best)
    moved = Z * (w + THETA * w_slope)  # d/dtheta of the draws' logits
    if generator == "non_saturating":
        expected = (-moved / (1 + np.exp(w * THETA * Z))).mean()
    else:  # reverse KL: the mean of -exp(-logit) over the data, and of -logit over the draws
        expected = (np.exp(-w * X) * X * w_slope).mean() - moved.mean()
    assert slope == pytest.approx(expected, rel=1e-9)
    assert abs(slope - plain[1]) > 5e-3


# --- by complex steps: exact derivatives without differentiating


def by_hand(name, k, size, generator, gammas=(0.0, 0.0), smoothing=0.0, counted=1.0):
    """The slope of theta, from the imaginary part of the unrolled game at theta + ih."""
    made, _, f_prime, _ = DIVERGENCES[name]
    f, pi = DIVERGENCES[name][1], float(getattr(made(_Numpy), "pi", 0.5))
    share = counted * np.ones(len(X))
    share, real = share / share.sum(), X[:, 0] * (np.asarray(counted) > 0)
    h = 1e-30
    draws = (THETA + 1j * h) * Z[:, 0] * (np.asarray(counted) > 0)
    w = W + 0j

    def logit(x):
        return w * x + (w * x) ** 2 / 4

    for _ in range(k):
        by_w = [x + w * x**2 / 2 for x in (real, draws)]
        right, wrong = (1 / (1 + np.exp(-logit(x))) for x in (real, draws))
        data = (1 - smoothing) * (right - 1) + smoothing * right
        grad = pi * (share * data * by_w[0]).sum() + (1 - pi) * (share * wrong * by_w[1]).sum()
        for gamma, x in zip(gammas, (real, draws), strict=True):
            # The logit's slope in x is w + w² x / 2.
            grad += gamma * (share * (w + w**2 * x / 2) * (1 + w * x)).sum()
        w = w - size * grad
    if generator == "non_saturating":
        total = (share * np.log(1 + np.exp(-logit(draws)))).sum()
    else:
        u, v = (np.exp(logit(x)) * (1 - pi) / pi for x in (real, draws))
        total = (share * f_prime(u)).sum() + (share * (f(v) - v * f_prime(v))).sum()
    return total.imag / h


class _Package:
    """Stands for a package where only pi is asked for."""

    def __getattr__(self, name):
        import pyro_spread

        return getattr(pyro_spread, name)


_Numpy = _Package()


def check(b, name, k=3, size=0.3, generator="divergence", masked=False, **options):
    made = {"divergence": DIVERGENCES[name][0], "generator": lambda p: generator, **options}
    plain = step(b, lambda p: p.AdversarialDivergence, masked=masked, **made)
    ahead = {"unroll": lambda p: k, "unroll_step_size": lambda p: size}
    found = step(b, lambda p: p.AdversarialDivergence, masked=masked, **made, **ahead)
    assert (found[0], found[2]) == pytest.approx((plain[0], plain[2]), rel=1e-12)
    return found[1], plain[1]


# Compiling takes NumPyro a second for each, and their formulas are those of Pyro.
EVERY = [(Pyro, name) for name in TRAINED] + [(NumPyro, "kl"), (NumPyro, "js .2 normalised")]


@pytest.mark.parametrize(("b", "name"), EVERY, ids=[f"{b.__name__}-{name}" for b, name in EVERY])
def test_every_divergence(b, name):
    found, plain = check(b, name)
    assert found == pytest.approx(by_hand(name, 3, 0.3, "divergence"), rel=1e-9)
    assert plain == pytest.approx(by_hand(name, 0, 0.3, "divergence"), rel=1e-9)
    assert abs(found - plain) > 1e-3


@in_both
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("generator", ["divergence", "non_saturating"])
def test_penalties_masks_and_labels(b, generator, masked):
    options = {
        "regularizer": lambda p: p.R1(0.4, every=1) + p.R2(0.7),
        "label_smoothing": lambda p: 0.1,
    }
    found, _ = check(b, "js .1", 5, 0.2, generator, masked, **options)
    counted = MASK.astype(float) if masked else 1.0
    expected = by_hand("js .1", 5, 0.2, generator, (0.4, 0.7), 0.1, counted)
    assert found == pytest.approx(expected, rel=1e-9)


@in_both
def test_many_steps_give_the_gradient_of_the_divergence_at_the_best_critic(b):
    """The envelope theorem: the critic's best loss moves as if the critic did not."""
    found, _ = check(b, "js .5", 300, 0.5)

    def best(theta, w=W):
        for _ in range(300):
            draws = theta * Z[:, 0]
            logits = [w * x + (w * x) ** 2 / 4 for x in (X[:, 0], draws)]
            by_w = [x + w * x**2 / 2 for x in (X[:, 0], draws)]
            right, wrong = (1 / (1 + np.exp(-logit)) for logit in logits)
            w = w - 0.5 * (((right - 1) * by_w[0]).mean() + (wrong * by_w[1]).mean()) / 2
        return -(np.logaddexp(0, -logits[0]).mean() + np.logaddexp(0, logits[1]).mean()) / 2

    assert found == pytest.approx((best(THETA + 1e-5) - best(THETA - 1e-5)) / 2e-5, rel=1e-5)


# --- nets


@pytest.mark.parametrize(
    "regularizer",
    ["GradientPenalty", *(pytest.param(n, marks=pytest.mark.slow) for n in (None, "R1", "lazy"))],
)
def test_nets_of_both_backends(regularizer, monkeypatch):
    """Particles, a penalty between data and draws, and one that is not at every step."""
    share = RNG.random(40)
    if regularizer == "GradientPenalty":
        _fix_mixing(monkeypatch, share)
    penalties = {
        None: lambda p: None,
        "R1": lambda p: p.R1(0.5),
        "lazy": lambda p: p.R1(0.5, every=10**9),
        "GradientPenalty": lambda p: p.GradientPenalty(0.5),
    }

    def program(b):
        def model(x, z):
            a = b.param("a", START)
            with b.plate("data", len(z)):
                b.sample("x", b.dist.Delta(b.np.tanh(z @ a)).to_event(1), obs=x)

        net = torch_net(weights("unrolled", 2))
        loss = b.package.AdversarialDivergence(
            b.package.concat_sites(b.pick(net, FlaxNet()), "x"),
            b.package.JSPi(0.3),
            regularizer=penalties[regularizer](b.package),
            num_particles=2,
            unroll=4,
            unroll_step_size=0.5,
        )
        return b.loss_and_grads(
            loss, model, no_guide, DATA, EPS, params={"a": START}, nets={CRITIC: net}
        )

    _, grads = compare(program, atol=1e-13)
    assert grads["a"].any()


DATA, EPS, START = RNG.normal(size=(40, 2)), RNG.normal(size=(40, 3)), RNG.normal(size=(3, 2))


def _fix_mixing(monkeypatch, share):
    import jax
    import jax.numpy as jnp
    import torch

    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor(share))
    monkeypatch.setattr(jax.random, "uniform", lambda *args, **kwargs: jnp.asarray(share))
