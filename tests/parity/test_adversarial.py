# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Adversarial losses: the same weights and draws give the same value and the same gradients."""

import numpy as np
import pytest
from every import DIVERGENCES, TRAINED
from twins import CRITIC, FlaxNet, compare, no_guide, torch_net

RNG = np.random.default_rng(4)
X, EPS = RNG.normal(size=(12, 2)), RNG.normal(size=(9, 3))
START = RNG.normal(size=(3, 2))
WEIGHTS = RNG.normal(size=(2, 5)), RNG.normal(size=5), RNG.normal(size=(5, 1)), RNG.normal(size=1)
MASK = RNG.random((9, 2)) < 0.7
SCALE = 0.5 + RNG.random(9)


def _program(b, make, options, weighted):
    """Value and both gradients."""

    def model(x, eps):
        w = b.param("w", START)
        with b.plate("data", len(eps)):
            delta = b.dist.Delta(b.np.tanh(eps @ w))
            if weighted:
                with b.handlers.scale(scale=b.array(SCALE)):
                    b.sample("x", delta.mask(b.array(MASK)).to_event(1), obs=x)
            else:
                b.sample("x", delta.to_event(1), obs=x)

    net = torch_net(WEIGHTS)
    loss = make(b.package, b.package.concat_sites(b.pick(net, FlaxNet()), "x"), options)
    x = X[: len(EPS)] if weighted else X
    return b.loss_and_grads(loss, model, no_guide, x, EPS, params={"w": START}, nets={CRITIC: net})


def _adversarial(divergence, generator="divergence"):
    def make(package, critic, options):
        options = {"generator": generator, **options(package)}
        return package.AdversarialDivergence(critic, divergence(package), **options)

    return make


def _wasserstein(package, critic, options):
    return package.WassersteinCritic(critic, gradient_penalty=0)


LOSSES = {name: _adversarial(DIVERGENCES[name][0]) for name in TRAINED} | {
    "non-saturating": _adversarial(lambda p: p.JSPi(0.3), "non_saturating"),
    "non-saturating-kl": _adversarial(lambda p: p.KL(), "non_saturating"),
    "variation": _adversarial(lambda p: p.TotalVariation(), "non_saturating"),
    "wasserstein": _wasserstein,
}
OPTIONS = {
    "smoothing": lambda p: {"label_smoothing": 0.1},
    "r1": lambda p: {"regularizer": p.R1(2.0)},
    "two-pass": lambda p: {"update": "two_pass"},
}


def _compare(make, options, weighted):
    _, grads = compare(lambda b: _program(b, make, options, weighted), atol=1e-13)
    assert grads["w"].any()
    for layer in grads[CRITIC].values():
        assert all(grad.any() or grad.size == 1 for grad in layer.values())


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_both_gradients(name):
    _compare(LOSSES[name], lambda package: {}, False)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, weighted):
    _compare(LOSSES["js .1"], OPTIONS[option], weighted)
