# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Logistic loss, penalties and adapters of both backends agree in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from numpyro_spread import ratio as theirs
from pyro_spread import ratio as ours

RNG = np.random.default_rng(7)
# Beyond 20 PyTorch's own softplus goes over to its asymptote.
P, Q = np.append(5 * RNG.normal(size=7), [21.0, -25.0]), np.append(5 * RNG.normal(size=5), 22.0)
WEIGHTS_P, WEIGHTS_Q = RNG.random(9), RNG.random(6)
WEIGHTS_P[2] = 0.0
X, Y = RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2, 2))
MATRIX = RNG.normal(size=(7, 7))


def close(one, other):
    np.testing.assert_allclose(other, one.detach().numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("pi", "smoothing", "weighted"), list(itertools.product((0.1, 0.5), (0.0, 0.2), (False, True)))
)
def test_logistic_loss(pi, smoothing, weighted):
    weights = (WEIGHTS_P, WEIGHTS_Q) if weighted else (None, None)
    p, q = (torch.tensor(v, requires_grad=True) for v in (P, Q))
    given = [None if w is None else torch.tensor(w) for w in weights]
    value = ours.logistic_loss(p, q, pi, *given, smoothing)
    value.backward()

    def loss(p, q):
        return theirs.logistic_loss(p, q, pi, *weights, smoothing)

    other, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(jnp.asarray(P), jnp.asarray(Q))
    close(value, other)
    close(p.grad, grads[0])
    close(q.grad, grads[1])
    close(ours.log_ratio(p, pi), theirs.log_ratio(jnp.asarray(P), pi))
    close(value, ours.logistic_loss(P, Q, pi, *weights, smoothing))  # NumPy
    close(ours.log_ratio(p, pi), ours.log_ratio(P, pi))


def values_of(package, array, shift=0.0):
    return package.SiteValues({"x": array(X + shift), "y": array(Y - shift)}, (6,))


@pytest.mark.parametrize("name", ["r1", "gradient-penalty"])
@pytest.mark.parametrize("weighted", [False, True])
def test_penalties(name, weighted):
    """The mixing of the gradient penalty is random, but not that of a datum with itself."""
    weights = np.array([0.0, 1.0, 2.0, 0.5, 1.0, 1.0]) if weighted else None

    def make(package):
        return package.R1(gamma=0.7) if name == "r1" else package.GradientPenalty(3.0, 0.5)

    matrix = torch.tensor(MATRIX, requires_grad=True)
    critic = ours.concat_sites(lambda h: torch.tanh((h @ matrix * h).sum(-1)))
    data = values_of(ours, torch.tensor)
    given = None if weights is None else torch.tensor(weights)
    value = make(ours).penalty(critic, data, data, given)
    value.backward()

    def penalty(matrix):
        critic = theirs.concat_sites(lambda h: jnp.tanh((h @ matrix * h).sum(-1)))
        data = values_of(theirs, jnp.asarray)
        return make(theirs).penalty(jax.random.key(0), critic, data, data, weights)

    other, grad = jax.jit(jax.value_and_grad(penalty))(jnp.asarray(MATRIX))
    close(value, other)
    close(matrix.grad, grad)


def test_gradient_penalty_between_the_sides(monkeypatch):
    share = RNG.random(6)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor(share))
    monkeypatch.setattr(jax.random, "uniform", lambda *args, **kwargs: jnp.asarray(share))
    sides = [
        values_of(p, a, s)
        for p, a in ((ours, torch.tensor), (theirs, jnp.asarray))
        for s in (0.0, 0.6)
    ]
    one = ours.GradientPenalty().penalty(lambda v: v["x"].pow(3).sum(-1), *sides[:2])
    other = theirs.GradientPenalty().penalty(
        jax.random.key(0), lambda v: (v["x"] ** 3).sum(-1), *sides[2:]
    )
    close(one, other)
    between = X + 0.6 * (1 - share)[:, None]
    norms = 3 * np.linalg.norm(between**2, axis=1)
    np.testing.assert_allclose(one.item(), 10 * ((norms - 1) ** 2).mean(), rtol=1e-10)


@pytest.mark.parametrize("names", [(), ("y", "c", "x"), ("k",)])
def test_features(names):
    label, count = RNG.normal(size=(6, 2)), np.arange(6)

    def joined(package, array, concatenate):
        values = values_of(package, array)
        values.arguments.update(c=array(label))
        kept = []
        critic = package.concat_sites(lambda h: kept.append(h) or h.sum(-1), *names)
        return critic(values, k=array(count)), kept[0]

    one, features = joined(ours, torch.tensor, torch.cat)
    other, other_features = joined(theirs, jnp.asarray, jnp.concatenate)
    np.testing.assert_array_equal(other_features, features)
    close(one, other)
