# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Adversarial losses in NumPyro: one pass, two passes and the usual hand-written loop agree."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen
from jax import random
from jax.nn import softplus

from numpyro_spread import (
    KL,
    R1,
    AdversarialDivergence,
    ChiSquared,
    GradientPenalty,
    Jeffreys,
    JSPi,
    ReverseChiSquared,
    ReverseKL,
    SquaredHellinger,
)

RNG = np.random.default_rng(0)
CRITIC = "discriminator$params"


def guide(*args):
    pass


def draws(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


class Net(linen.Module):
    steepness: float = 1.0
    batch_norm: bool = False

    @linen.compact
    def __call__(self, values, *args):
        hidden = linen.Dense(8)(values["x"])
        if self.batch_norm:
            hidden = linen.BatchNorm(use_running_average=False)(hidden)
        return self.steepness * linen.Dense(1)(jnp.tanh(hidden))[..., 0]


def generator(x, eps, mask=None):
    w = numpyro.param("w", jnp.array([0.5, 1.5]))
    with numpyro.plate("data", x.shape[0]):
        fn = dist.Delta(w * eps + jnp.roll(w, 1), event_dim=1)
        numpyro.sample("x", fn if mask is None else fn.mask(mask), obs=x)


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


def both_players(loss, params, model, *args):
    def value(params):
        return loss.loss(random.key(3), params, model, guide, *args)

    return jax.value_and_grad(value)(params)


def by_hand(loss, params, x, eps, mask=None):
    """The usual loop: the critic's loss on fixed draws, the generator's through a fixed critic."""
    pi, smoothing = loss.divergence.pi, loss.label_smoothing
    share = jnp.full(len(x), 1 / len(x)) if mask is None else mask / mask.sum()

    def judge(critic, values):
        return loss.discriminator.apply({"params": critic}, {"x": values}, mutable="batch_stats")[0]

    def draw(w):
        values = w * eps + jnp.roll(w, 1)
        return values if mask is None else jnp.where(mask[:, None], values, 0.0)

    real = x if mask is None else jnp.where(mask[:, None], x, 0.0)

    def critic_loss(critic):
        at_data, at_fake = judge(critic, real), judge(critic, draw(params["w"]))
        right = (1 - smoothing) * softplus(-at_data) + smoothing * softplus(at_data)
        total = pi * (share * right).sum() + (1 - pi) * (share * softplus(at_fake)).sum()
        if isinstance(loss.regularizer, R1):
            slope = jax.grad(lambda values: judge(critic, values).sum())(real)
            total += loss.regularizer.gamma / 2 * (share * jnp.square(slope).sum(-1)).sum()
        return total

    def generator_loss(w):
        logits = judge(params[CRITIC], draw(w))
        if loss.generator == "non_saturating":
            return (share * softplus(-logits)).sum()
        log_ratio = logits - math.log(pi / (1 - pi))
        return (share * loss.divergence.generator_loss(log_ratio)).sum()

    return {
        "w": jax.grad(generator_loss)(params["w"]),
        CRITIC: jax.grad(critic_loss)(params[CRITIC]),
    }


def assert_same(one, other, rtol=1e-5):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        scale = float(jnp.abs(right).max())
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * scale + 1e-12)


def start(critic):
    x, eps = 0.5 + draws(40, 2), draws(40, 2)
    params = critic.init(random.key(1), {"x": x})["params"]
    return {"w": jnp.array([0.5, 1.5]), CRITIC: params}, x, eps


@pytest.mark.parametrize("steepness", [1.0, 1000.0])
@pytest.mark.parametrize("form", FORMS)
def test_one_pass_two_passes_and_the_usual_loop_agree(form, steepness):
    make, generator_form = FORMS[form]
    critic = Net(steepness)
    params, x, eps = start(critic)
    for update in ("one_pass", "two_pass"):
        loss = AdversarialDivergence(critic, make(), generator=generator_form, update=update)
        _, found = both_players(loss, params, generator, x, eps)
        assert_same(found, by_hand(loss, params, x, eps))


OPTIONS = {
    "smoothing": {"label_smoothing": 0.1},
    "r1": {"regularizer": R1(2.0)},
    "all": {"regularizer": R1(0.5), "label_smoothing": 0.2, "num_particles": 2},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_keep_gradients_exact(option, masked):
    critic = Net(5.0)
    params, x, eps = start(critic)
    mask = jnp.arange(40) % 3 > 0 if masked else None
    for update in ("one_pass", "two_pass"):
        loss = AdversarialDivergence(critic, JSPi(0.3), update=update, **OPTIONS[option])
        _, found = both_players(loss, params, generator, x, eps, mask)
        assert_same(found, by_hand(loss, params, x, eps, mask))


def test_particles_are_averaged():
    def random_model(x):
        w = numpyro.param("w", jnp.array([0.5, 1.5]))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    critic = Net()
    params, x, _ = start(critic)
    value, found = both_players(
        AdversarialDivergence(critic, num_particles=2), params, random_model, x
    )
    single = AdversarialDivergence(critic)

    def alone(params, key):
        return single._play_once(key, params, random_model, guide, (x,), {})[0]

    keys = random.split(random.key(3), 2)
    each = [jax.value_and_grad(alone)(params, key) for key in keys]
    assert float(value) == pytest.approx(np.mean([float(v) for v, _ in each]), rel=1e-5)
    assert_same(found, jax.tree.map(lambda a, b: (a + b) / 2, each[0][1], each[1][1]))


def test_the_gradient_penalty_reaches_the_critic_alone():
    critic = Net(5.0)
    params, x, eps = start(critic)
    plain = both_players(AdversarialDivergence(critic), params, generator, x, eps)[1]
    penalty = {"regularizer": GradientPenalty(3.0)}
    found = [
        both_players(
            AdversarialDivergence(critic, update=update, **penalty), params, generator, x, eps
        )[1]
        for update in ("one_pass", "two_pass")
    ]
    assert_same(*found)
    np.testing.assert_array_equal(found[0]["w"], plain["w"])
    change = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), found[0][CRITIC], plain[CRITIC])
    assert max(jax.tree.leaves(change)) > 1e-2


def test_batch_normalisation_takes_two_passes():
    critic = Net(batch_norm=True)
    params, x, eps = start(critic)
    loss = AdversarialDivergence(critic)
    assert_same(
        both_players(loss, params, generator, x, eps)[1], by_hand(loss, params, x, eps), 2e-5
    )
    with pytest.raises(ValueError, match=r"update='one_pass' needs a critic .* batch norm"):
        both_players(AdversarialDivergence(critic, update="one_pass"), params, generator, x, eps)
