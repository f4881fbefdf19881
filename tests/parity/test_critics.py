# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every ready-made critic has a twin: the same weights give the same logits and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import assert_refused_alike, assert_twins, flax_params

import numpyro_spread.ratio.critics as theirs
import pyro_spread.ratio.critics as ours

RNG = np.random.default_rng(0)


def _separable(critic):
    names = ("left_embedding", "right_embedding", "left_head", "right_head")
    return {name: flax_params(getattr(critic, name)) for name in names}


def _quadratic(critic):
    torch.nn.init.normal_(critic.matrix)
    torch.nn.init.normal_(critic.vector)
    torch.nn.init.normal_(critic.constant)
    return flax_params(critic)


X = RNG.normal(size=(4, 5, 3))
IMAGES = RNG.normal(size=(4, 5, 2 * 9 * 8))
SITES = {"x": RNG.normal(size=(5, 2, 3)), "z": RNG.normal(size=(5, 2))}
# name -> (constructor given a module of critics, params in flax's names, input)
CRITICS = {
    "mlp": (lambda c: c.MLPCritic((8, 7)), lambda m: {"layers": flax_params(m)}, X),
    "quadratic": (lambda c: c.QuadraticCritic(), _quadratic, X),
    "conv": (lambda c: c.ConvCritic((2, 9, 8), (4, 6)), flax_params, IMAGES),
    "separable": (lambda c: c.SeparableCritic("x", "z", (8, 8), 5), _separable, SITES),
    "separable-half-square": (
        lambda c: c.SeparableCritic("x", "z", (8,), 5, True),
        _separable,
        SITES,
    ),
}


@pytest.mark.parametrize("name", CRITICS)
def test_logits_and_their_gradient(name):
    make, params_of, numbers = CRITICS[name]
    one, other = make(ours), make(theirs)
    inputs = jax.tree.map(lambda v: torch.tensor(v, requires_grad=True), numbers)
    one(inputs)  # lazy layers take their sizes
    params = params_of(one)
    logits = one(inputs)
    logits.sum().backward()
    gradients = jax.tree.map(lambda tensor: tensor.grad, inputs)

    arrays = jax.tree.map(jnp.asarray, numbers)
    expected, pull_back = jax.vjp(lambda a: other.apply({"params": params}, a), arrays)
    assert_twins((logits, gradients), (expected, *pull_back(jnp.ones_like(expected))))


def test_spectral_norms_agree_once_torch_has_converged():
    one = ours.MLPCritic((8, 7), spectral_norm=True)
    inputs = torch.tensor(X)
    for _ in range(200):
        one(inputs)
    expected = theirs.MLPCritic((8, 7), spectral_norm=True).apply(
        {"params": {"layers": flax_params(one)}}, jnp.asarray(X)
    )
    np.testing.assert_allclose(one(inputs).detach().numpy(), expected, rtol=1e-4)


def test_the_same_mistake_gives_the_same_message():
    mistakes = [
        lambda c: c.MLPCritic(hidden=64),
        lambda c: c.MLPCritic(input_dim=0),
        lambda c: c.ConvCritic((64,)),
        lambda c: c.ConvCritic((8, 8), (8,) * 4),
        lambda c: c.SeparableCritic("x", "z", features=0),
    ]
    for mistake in mistakes:
        assert_refused_alike(
            lambda b, mistake=mistake: mistake(b.package.ratio.critics),
            r"must be|too small",
            ValueError,
        )
