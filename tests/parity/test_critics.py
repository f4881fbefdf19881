# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Every ready-made critic has a twin: the same weights give the same logits and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import numpyro_spread.ratio.critics as theirs
import pyro_spread.ratio.critics as ours

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}
RNG = np.random.default_rng(0)


def _weight(weight):
    """A weight in flax's order: input before output features."""
    order = (2, 3, 1, 0) if weight.dim() == 4 else (1, 0)
    return jnp.asarray(weight.detach().permute(order).numpy())


def _layers(module):
    """The params of the torch layers in ``module``, under flax's names."""
    params, counts = {}, {"Dense": 0, "Conv": 0}
    for layer in module.modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            kind = "Dense" if isinstance(layer, torch.nn.Linear) else "Conv"
            bias = jnp.asarray(layer.bias.detach().numpy())
            # A normalised weight is the result: the raw one is what was learned.
            raw = getattr(layer, "parametrizations", None)
            weight = layer.weight if raw is None else raw.weight.original
            params[f"{kind}_{counts[kind]}"] = {"kernel": _weight(weight), "bias": bias}
            counts[kind] += 1
    return params


def _separable(critic):
    names = ("left_embedding", "right_embedding", "left_head", "right_head")
    return {name: _layers(getattr(critic, name)) for name in names}


def _quadratic(critic):
    torch.nn.init.normal_(critic.matrix)
    torch.nn.init.normal_(critic.vector)
    torch.nn.init.normal_(critic.constant)
    return {name: jnp.asarray(p.detach().numpy()) for name, p in critic.named_parameters()}


X = RNG.normal(size=(4, 5, 3))
IMAGES = RNG.normal(size=(4, 5, 2 * 9 * 8))
SITES = {"x": RNG.normal(size=(5, 2, 3)), "z": RNG.normal(size=(5, 2))}
# name -> (constructor given a module of critics, params in flax's names, input)
CRITICS = {
    "mlp": (lambda c: c.MLPCritic((8, 7)), lambda m: {"layers": _layers(m)}, X),
    "quadratic": (lambda c: c.QuadraticCritic(), _quadratic, X),
    "conv": (lambda c: c.ConvCritic((2, 9, 8), (4, 6)), _layers, IMAGES),
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

    arrays = jax.tree.map(jnp.asarray, numbers)
    expected = other.apply({"params": params}, arrays)
    np.testing.assert_allclose(logits.detach().numpy(), expected, **TOLERANCE)
    gradients = jax.grad(lambda a: other.apply({"params": params}, a).sum())(arrays)
    for tensor, gradient in zip(jax.tree.leaves(inputs), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, **TOLERANCE)


def test_spectral_norms_agree_once_torch_has_converged():
    one = ours.MLPCritic((8, 7), spectral_norm=True)
    inputs = torch.tensor(X)
    for _ in range(200):
        one(inputs)
    expected = theirs.MLPCritic((8, 7), spectral_norm=True).apply(
        {"params": {"layers": _layers(one)}}, jnp.asarray(X)
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
        with pytest.raises(ValueError, match=r"must be|too small") as one:
            mistake(ours)
        with pytest.raises(ValueError, match=r"must be|too small") as other:
            mistake(theirs)
        assert str(one.value) == str(other.value)
