# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Critics whose samples move each other's logits get two passes, and all gradients are exact."""

import warnings

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from every import TRAINED, instances
from jax import random

import numpyro_spread
from numpyro_spread import (
    KL,
    R1,
    AdversarialDivergence,
    ReverseKL,
    WassersteinCritic,
    concat_sites,
)
from numpyro_spread.ratio import MLPCritic, SiteValues
from numpyro_spread.ratio._slopes import are_apart, others_move
from numpyro_spread.ratio.binding import bind

DIVERGENCES = instances(numpyro_spread, TRAINED)
COUNT = 6


class Net(linen.Module):
    mid: object = None

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(8)(x)
        x = x if self.mid is None else self.mid(x)
        return linen.Dense(1)(jnp.tanh(x))


class Gated(linen.Module):
    """Attention over the batch, whose gate starts at zero."""

    @linen.compact
    def __call__(self, x):
        gate = self.param("gate", lambda key: jnp.zeros(()))
        return x + gate * jax.nn.softmax(x @ x.T) @ x


def spread_of_batch(x):
    std = jnp.broadcast_to(x.std(0).mean(), (len(x), 1))
    return jnp.concatenate([x[:, :-1], std], -1)


def far_out(x):
    return jax.lax.cond(x.mean() > 100, lambda x: x - x.mean(0), lambda x: x, x)


COUPLED = {
    "std of the batch": lambda: Net(spread_of_batch),
    "mean": lambda: Net(lambda x: x - x.mean(0)),
    "sorted": lambda: Net(lambda x: jnp.sort(x, 0)),
    "softmax over the batch": lambda: Net(lambda x: jax.nn.softmax(x, 0)),
    "batch norm": lambda: Net(linen.BatchNorm(use_running_average=False)),
    "attention behind a gate": lambda: Net(Gated()),
}
APART = {
    "perceptron": lambda: MLPCritic((8,), spectral_norm=True),
    "layer norm": lambda: Net(linen.LayerNorm()),
    "group norm": lambda: Net(linen.GroupNorm(2)),
    "softmax": lambda: Net(jax.nn.softmax),
    "slices": lambda: Net(lambda x: jnp.concatenate([x[:, :4], x[:, 1:2] * x[:, 4:]], 1)),
    "batch norm of averages": lambda: Net(linen.BatchNorm(use_running_average=True)),
}
X = jnp.linspace(-1, 2, 2 * COUNT).reshape(COUNT, 2)


def model(x):
    w = numpyro.param("w", jnp.array([0.5, 1.5]))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Delta(w * z + jnp.roll(w, 1), event_dim=1), obs=x)


def no_guide(x):
    pass


def gradients(loss):
    registered = loss.register(model, no_guide)
    params = {"w": jnp.array([0.5, 1.5])}
    traced = numpyro.handlers.trace(numpyro.handlers.seed(registered, 0)).get_trace(X)
    params |= {n: s["value"] for n, s in traced.items() if s["type"] == "param"}
    return jax.grad(lambda p: loss.loss(random.key(1), p, model, registered, X))(params)


def same(first, second):
    for one, other in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(jnp.abs(other).max()))


def check_default(kind, divergences):
    critic = concat_sites(COUPLED[kind](), "x")
    for divergence in divergences:
        losses = [AdversarialDivergence(critic, divergence, update=u) for u in (None, "two_pass")]
        same(*map(gradients, losses))


@pytest.mark.parametrize("kind", COUPLED)
def test_default_is_exact_for_every_coupling(kind):
    check_default(kind, [KL(), ReverseKL()])


@pytest.mark.parametrize(
    "kind", [c if c == "mean" else pytest.param(c, marks=pytest.mark.slow) for c in COUPLED]
)
def test_default_is_exact_for_every_divergence(kind):
    check_default(kind, DIVERGENCES)


@pytest.mark.parametrize("kind", COUPLED)
def test_one_pass_is_refused(kind):
    critic = concat_sites(COUPLED[kind](), "x")
    with pytest.raises(ValueError, match="needs a critic that treats samples one by one"):
        gradients(AdversarialDivergence(critic, ReverseKL(), update="one_pass"))
    with pytest.raises(ValueError, match="Use update='two_pass'"):
        gradients(WassersteinCritic(critic, 0.0, update="one_pass"))


def bound(net):
    critic, values = bind(concat_sites(net, "x")), SiteValues({"x": X}, (COUNT,))
    params = critic.init(random.key(0), values, (), {})
    return critic, params, values


@pytest.mark.parametrize("kind", [*APART, *COUPLED])
def test_what_the_jaxpr_proves(kind):
    critic, params, values = bound((APART | COUPLED)[kind]())
    apart = are_apart(lambda values: critic.apply(params, values, (), {}), values)
    assert apart == (kind in APART)
    assert others_move(critic.apply, params, values, (), {}) == (kind in COUPLED)


def test_what_it_cannot_see_takes_two_passes():
    critic, params, values = bound(Net(far_out))
    assert not are_apart(lambda values: critic.apply(params, values, (), {}), values)
    critic = concat_sites(Net(far_out), "x")
    losses = [AdversarialDivergence(critic, KL(), update=u) for u in (None, "two_pass")]
    for one, other in zip(*map(jax.tree.leaves, map(gradients, losses)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_penalty_on_a_coupled_critic_warns_once():
    for make in (
        lambda critic: AdversarialDivergence(critic, regularizer=R1(1.0)),
        WassersteinCritic,
    ):
        loss = make(concat_sites(COUPLED["batch norm"](), "x"))
        with pytest.warns(UserWarning, match="gradient penalty meets a critic"):
            gradients(loss)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gradients(loss)
            gradients(make(concat_sites(APART["layer norm"](), "x")))
