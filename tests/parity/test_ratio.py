# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Logistic loss, penalties and adapters of both backends agree in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import BACKENDS, assert_twins, compare, compare_gradients

from pyro_spread import ratio as ours

RNG = np.random.default_rng(7)
# Beyond 20 PyTorch's own softplus goes over to its asymptote.
P, Q = np.append(5 * RNG.normal(size=7), [21.0, -25.0]), np.append(5 * RNG.normal(size=5), 22.0)
WEIGHTS_P, WEIGHTS_Q = RNG.random(9), RNG.random(6)
WEIGHTS_P[2] = 0.0
X, Y = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2, 2))
MATRIX = RNG.normal(size=(7, 7))


def ratio(b):
    return b.package.ratio


@pytest.mark.parametrize(
    ("pi", "smoothing", "weighted"), list(itertools.product((0.1, 0.5), (0.0, 0.2), (False, True)))
)
def test_logistic_loss(pi, smoothing, weighted):
    weights = (WEIGHTS_P, WEIGHTS_Q) if weighted else (None, None)

    def loss(b, p, q):
        given = [None if w is None else b.array(w) for w in weights]
        return ratio(b).logistic_loss(p, q, pi, *given, smoothing)

    value, _ = compare_gradients(loss, P, Q, compiled=True, atol=1e-14)
    log_ratio = compare(lambda b: ratio(b).log_ratio(b.array(P), pi), atol=1e-14)
    in_numpy = ours.logistic_loss(P, Q, pi, *weights, smoothing), ours.log_ratio(P, pi)
    assert_twins((value, log_ratio), in_numpy, atol=1e-14)


def values_of(b, shift=0.0):
    return ratio(b).SiteValues({"x": b.array(X + shift), "y": b.array(Y - shift)}, (6,))


@pytest.mark.parametrize("name", ["r1", "gradient-penalty"])
@pytest.mark.parametrize("weighted", [False, True])
def test_penalties(name, weighted):
    """The mixing of the gradient penalty is random, but not that of a datum with itself."""
    weights = np.array([0.0, 1.0, 2.0, 0.5, 1.0, 1.0]) if weighted else None

    def penalty(b, matrix):
        made = ratio(b).R1(gamma=0.7) if name == "r1" else ratio(b).GradientPenalty(3.0, 0.5)
        critic = ratio(b).concat_sites(lambda h: b.np.tanh((h @ matrix * h).sum(-1)))
        data = values_of(b)
        given = None if weights is None else b.array(weights)
        return made.penalty(*b.key, critic, data, data, given)

    compare_gradients(penalty, MATRIX, compiled=True, atol=1e-14)


def test_gradient_penalty_between_the_sides(monkeypatch):
    share = RNG.random(6)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor(share))
    monkeypatch.setattr(jax.random, "uniform", lambda *args, **kwargs: jnp.asarray(share))

    def penalty(b):
        sides = values_of(b), values_of(b, 0.6)
        made = ratio(b).GradientPenalty()
        return made.penalty(*b.key, lambda v: (v["x"] ** 3).sum(-1), *sides)

    one = compare(penalty, atol=1e-14)
    between = X + 0.6 * (1 - share)[:, None]
    norms = 3 * np.linalg.norm(between**2, axis=1)
    np.testing.assert_allclose(one, 10 * ((norms - 1) ** 2).mean(), rtol=1e-10)


@pytest.mark.parametrize("names", [(), ("y", "c", "x"), ("k",)])
def test_features(names):
    label, count = RNG.normal(size=(6, 2)), np.arange(6)

    def joined(b):
        values = values_of(b)
        values.arguments.update(c=b.array(label))
        kept = []
        critic = ratio(b).concat_sites(lambda h: kept.append(h) or h.sum(-1), *names)
        return critic(values, k=b.array(count)), kept[0]

    (_, features), (_, other_features) = map(joined, BACKENDS)
    np.testing.assert_array_equal(other_features, features)
    compare(lambda b: joined(b)[0], atol=1e-14)
