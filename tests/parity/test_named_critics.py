# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Hinge, least squares and relativistic pairing: what they report and follow at the best critic."""

import numpy as np
import pytest
from flax import linen
from scipy.integrate import quad, trapezoid
from scipy.stats import norm
from torch import nn
from twins import (
    CRITIC,
    FlaxNet,
    assert_refused_alike,
    compare,
    in_both,
    no_guide,
    numbers,
    torch_net,
    weights,
)

# Quantiles of the standard normal distribution: means over them are nearly integrals.
GRID = norm.ppf((np.arange(20_000) + 0.5) / 20_000)[:, None]
LOC, SCALE = 0.7, 1.3


class TorchBest(nn.Module):
    """A function of the log-ratio of N(0, 1) to N(LOC, SCALE²), times a param that is one."""

    def __init__(self, b, link):
        super().__init__()
        self.one, self.link, self.b = nn.Linear(1, 1, bias=False).double(), link, b
        self.one.weight.data.fill_(1.0)

    def forward(self, x):
        return self.one(self.link(self.b, log_ratio(x)))


class FlaxBest(linen.Module):
    """Its twin."""

    b: type
    link: object

    @linen.compact
    def __call__(self, x):
        dense = linen.Dense(1, use_bias=False)
        return dense(self.link(self.b, log_ratio(x)))


def log_ratio(x, loc=LOC, scale=SCALE):
    return ((x - loc) / scale) ** 2 / 2 - x**2 / 2 + np.log(scale)


def at_the_best(b, make, link, data=GRID, draws=GRID, weight=1.0):
    """Value of a loss for N(0, 1) and N(LOC, SCALE²) by quantiles, and the slopes of both."""

    def model(x, z):
        loc, scale = b.param("loc", LOC), b.param("scale", SCALE)
        with b.plate("data", len(z)), b.handlers.scale(scale=b.array(weight)):
            b.sample("x", b.dist.Delta(loc + scale * z).to_event(1), obs=x)

    net = TorchBest(b, link)
    loss = make(b.package, b.package.concat_sites(b.pick(net, FlaxBest(b, link)), "x"))
    value, grads = b.loss_and_grads(
        loss, model, no_guide, data, draws, params={"loc": LOC, "scale": SCALE}, nets={CRITIC: net}
    )
    return float(value), np.array([grads["loc"], grads["scale"]])


def slopes(divergence, step=1e-4):
    """Central differences of a divergence of N(0, 1) from N(loc, scale²)."""
    moves = np.eye(2) * step
    each = [(divergence(LOC + a, SCALE + b), divergence(LOC - a, SCALE - b)) for a, b in moves]
    return np.array([(up - down) / (2 * step) for up, down in each])


def f_divergence(f):
    def of(loc, scale):
        def at(x):
            return norm.pdf(x, loc, scale) * f(np.exp(log_ratio(x, loc, scale)))

        return quad(at, -12, 14, limit=200, epsabs=1e-12)[0]

    return of


def least_squares(u):
    return u * np.log(2 * u / (1 + u)) - (u - 1) ** 2 / (u + 1) / 8


le_cam = f_divergence(lambda u: (u - 1) ** 2 / (u + 1))


@in_both
@pytest.mark.parametrize("labels", [(0.0, 1.0, 1.0), (-1.0, 2.0, 2.0), (1.0, -1.0, -1.0)])
def test_least_squares_follows_its_divergence_and_reports_le_cams(b, labels):
    of_draws, of_data, _ = labels

    def link(b, ratio):
        return of_draws + (of_data - of_draws) / (1 + b.np.exp(-ratio))

    value, found = at_the_best(b, lambda p, c: p.LeastSquaresCritic(c, labels=labels), link)
    assert value == pytest.approx(le_cam(LOC, SCALE), abs=2e-5)
    expected = (of_data - of_draws) ** 2 * slopes(f_divergence(least_squares))
    np.testing.assert_allclose(found, expected, rtol=2e-4)


@in_both
def test_the_divergence_of_least_squares_is_the_same_by_a_classifier(b):
    by_logits = at_the_best(
        b,
        lambda p, c: p.AdversarialDivergence(c, p.LeastSquares(), update="two_pass"),
        lambda b, ratio: ratio,
    )
    assert by_logits[0] == pytest.approx(f_divergence(least_squares)(LOC, SCALE), abs=2e-5)
    np.testing.assert_allclose(by_logits[1], slopes(f_divergence(least_squares)), rtol=2e-4)


@in_both
def test_least_squares_with_another_target_has_no_slope_of_a_divergence(b):
    """With the labels -1, 1, 0 draws are pulled to where p = q: here, away from each other."""

    def link(b, ratio):
        return b.np.tanh(ratio / 2)

    make = lambda p, c: p.LeastSquaresCritic(c, labels=(-1.0, 1.0, 0.0))  # noqa: E731
    value, found = at_the_best(b, make, link)
    assert value == pytest.approx(le_cam(LOC, SCALE), abs=2e-5)
    draws = LOC + SCALE * GRID
    by_ratio = np.tanh(log_ratio(draws) / 2) * (1 - np.tanh(log_ratio(draws) / 2) ** 2) / 2
    by_draw = by_ratio * ((draws - LOC) / SCALE**2 - draws)
    np.testing.assert_allclose(found, [by_draw.mean(), (by_draw * GRID).mean()], rtol=1e-9)
    assert np.abs(found - slopes(le_cam) / 2).max() > 0.05


@in_both
def test_hinge_bounds_the_total_variation_and_is_flat_at_the_best_critic(b):
    def sign(b, ratio):
        return b.np.sign(ratio)

    value, found = at_the_best(b, lambda p, c: p.HingeCritic(c), sign)
    total_variation = f_divergence(lambda u: abs(u - 1) / 2)(LOC, SCALE)
    assert value == pytest.approx(total_variation, abs=2e-4)
    assert not found.any()
    below, found = at_the_best(b, lambda p, c: p.HingeCritic(c), lambda b, ratio: ratio)
    assert below < total_variation
    np.testing.assert_allclose(found, slopes(f_divergence(lambda u: -np.log(u))), rtol=2e-3)


@in_both
def test_relativistic_pairs_are_a_jensen_shannon_divergence(b):
    """Each node of one side is paired with each of the other: means are integrals over both."""
    nodes, share = np.polynomial.hermite_e.hermegauss(60)
    pairs = [side.reshape(-1, 1) for side in np.meshgrid(nodes, nodes)]
    value, found = at_the_best(
        b,
        lambda p, c: p.RelativisticCritic(c, 0.0),
        lambda b, ratio: ratio + 0.3,  # any constant will do
        *pairs,
        weight=np.outer(share, share).ravel(),
    )

    def of_pairs(loc, scale):
        """JS of P x Q from Q x P, from both densities of the pairs."""
        x, y = np.meshgrid(GRID_OF_PAIRS, GRID_OF_PAIRS)
        right, wrong = (norm.pdf(a) * norm.pdf(b, loc, scale) for a, b in ((x, y), (y, x)))
        mean = (right + wrong) / 2
        inside = right * np.log(right / mean) + wrong * np.log(wrong / mean)
        return trapezoid(trapezoid(inside, GRID_OF_PAIRS), GRID_OF_PAIRS) / 2

    assert value == pytest.approx(of_pairs(LOC, SCALE), abs=1e-6)
    reverse_kl = slopes(f_divergence(lambda u: -np.log(u)))
    np.testing.assert_allclose(found, reverse_kl - slopes(of_pairs), rtol=1e-4)


GRID_OF_PAIRS = np.linspace(-9, 11, 401)


# --- nets


MASK = numbers("counted", 12) > -0.5
WEIGHT = 0.5 + np.abs(numbers("weight", 12))
LOSSES = {
    "hinge": lambda p, c: p.HingeCritic(c, regularizer=p.R1(0.3)),
    "least squares": lambda p, c: p.LeastSquaresCritic(c, regularizer=p.R2(0.3)),
    "relativistic": lambda p, c: p.RelativisticCritic(c, 0.3, num_particles=2),
    "two passes": lambda p, c: p.RelativisticCritic(c, 0.3, update="two_pass", num_particles=2),
}


def run(b, make, count=12, weighted=False):
    x, eps, start = numbers("x", 12, 2), numbers("eps", 12, 3)[:count], numbers("start", 3, 2)

    def model(x, eps):
        w = b.param("w", start)
        with b.plate("data", len(eps)):
            fn = b.dist.Delta(b.np.tanh(eps @ w)).to_event(1)
            if not weighted:
                b.sample("x", fn, obs=x)
            else:
                with b.handlers.scale(scale=b.array(WEIGHT)):
                    b.sample("x", fn.mask(b.array(MASK)), obs=x)

    net = torch_net(weights("named", 2))
    loss = make(b.package, b.package.concat_sites(b.pick(net, FlaxNet()), "x"))
    return b.loss_and_grads(loss, model, no_guide, x, eps, params={"w": start}, nets={CRITIC: net})


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_nets_of_both_backends(name, weighted):
    _, grads = compare(lambda b: run(b, LOSSES[name], weighted=weighted), atol=1e-13)
    assert grads["w"].any()
    assert all(grad.any() or grad.size == 1 for grad in _leaves(grads[CRITIC]))


def _leaves(tree):
    return [leaf for layer in tree.values() for leaf in layer.values()]


@pytest.mark.parametrize("name", ["hinge", "least squares"])
def test_as_many_draws_as_data_are_not_needed(name):
    compare(lambda b: run(b, LOSSES[name], 9), atol=1e-13)


def test_one_pass_and_two_agree():
    one, two = (
        compare(lambda b, n=name: run(b, LOSSES[n])) for name in ("relativistic", "two passes")
    )
    np.testing.assert_allclose(one[1]["w"], two[1]["w"], rtol=1e-8)


MISTAKES = {
    "pairs": (
        lambda b: run(b, LOSSES["relativistic"], 9),
        r"there are \(12,\) data and \(9,\) draws. Draw as many",
    ),
    "two labels": (
        lambda b: run(b, lambda p, c: p.LeastSquaresCritic(c, labels=(0.0, 1.0))),
        "labels must be three finite numbers",
    ),
    "one label": (
        lambda b: run(b, lambda p, c: p.LeastSquaresCritic(c, labels=(1.0, 1.0, 0.0))),
        "the first two different",
    ),
    "gamma": (
        lambda b: run(b, lambda p, c: p.RelativisticCritic(c, -1.0)),
        "gamma must be zero or positive, got -1.0",
    ),
    "turns": (
        lambda b: b.package.R1(every=2) + b.package.R2(),
        r"must have their turn together, but every is \[2, 1\]",
    ),
    "summand": (
        lambda b: b.package.R1() + 1.0,
        r"only penalties such as R2\(\) can be added to a penalty, got 1.0",
    ),
    "R2": (lambda b: b.package.R2(0.0), "R2: gamma must be positive, got 0.0"),
    "unroll": (
        lambda b: run(b, lambda p, c: p.AdversarialDivergence(c, unroll=-1)),
        "unroll must be an integer of at least 0, got -1",
    ),
    "half a step": (
        lambda b: run(b, lambda p, c: p.AdversarialDivergence(c, unroll=0.5)),
        "unroll must be an integer",
    ),
    "step size": (
        lambda b: run(b, lambda p, c: p.AdversarialDivergence(c, unroll=1, unroll_step_size=0)),
        "unroll_step_size must be a positive number, got 0",
    ),
    "one pass": (
        lambda b: run(b, lambda p, c: p.AdversarialDivergence(c, unroll=1, update="one_pass")),
        "unroll=k asks for the gradient through k of its steps. Leave out one",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    assert_refused_alike(*MISTAKES[mistake])
