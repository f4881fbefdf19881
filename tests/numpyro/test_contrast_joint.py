# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""JointContrastELBO: pairs of data and latents, and their players."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax import random
from jax.nn import softplus
from numpyro import handlers
from numpyro.infer import SVI
from numpyro_contrast import (
    ALL,
    CRITIC,
    KNOWN,
    PARAMS,
    Told,
    X,
    guide,
    mean_and_error,
    normal,
    total,
)
from numpyro_joint_contrast import global_guide, global_model, model, run

from numpyro_spread import (
    KL,
    R1,
    GaussianNoise,
    JointContrastELBO,
    JSPi,
    ReverseKL,
    concat_sites,
    two_player,
)


def log_joint(values, mu):
    return normal(values["z"], mu, 1.0) + normal(values["x"], values["z"], 0.5)


def log_guide(values):
    return normal(values["z"], PARAMS["m"] * values["x"], PARAMS["s"])


def log_ratio(values, x):
    """Log q(z | x) / p(x, z): the joints' ratio less the unknown density of the data."""
    return log_guide(values) - log_joint(values, PARAMS["mu"])


def minus_elbo(params, x):
    m, s, mu = params["m"] * x, params["s"], params["mu"]
    likelihood = normal(x, m, 0.5) - s**2 / (2 * 0.25)
    prior = normal(m, mu, 1.0) - s**2 / 2
    return -(likelihood + prior + jnp.log(s) + 0.5 * jnp.log(2 * jnp.pi * jnp.e)).sum()


def test_reverse_kl_with_the_right_critic_is_minus_the_elbo():
    loss = JointContrastELBO(Told(log_ratio))

    x = jnp.tile(X, 500)

    def both(key):
        return jax.value_and_grad(lambda p: loss.loss(key, p, model, guide, x))(ALL)

    (value, grads), (error, grad_errors) = mean_and_error(both)
    exact, exact_grads = jax.value_and_grad(minus_elbo)(PARAMS, x)
    assert error < 0.01 * exact
    assert abs(value - exact) < 4.5 * error
    for name in ("m", "s"):
        assert grad_errors[name] < 0.03 * abs(exact_grads[name])
        assert abs(grads[name] - exact_grads[name]) < 4.5 * grad_errors[name]


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_critic_gets_the_gradient_of_the_logistic_loss_alone(share):
    loss = JointContrastELBO(Told(total), JSPi(share))
    params = {**PARAMS, CRITIC: {"gain": jnp.asarray(0.4)}}
    grads = jax.grad(lambda p: run(loss, params=p))(params)
    # The draws of a step are those of logits() at the key that the step splits off.
    key = random.split(random.split(random.key(0), 1)[0], 3)[0]
    logits = loss.logits(key, params, model, guide, X)
    assert logits.p.shape == logits.q.shape == (6,)
    data, fake = logits.p / 0.4, logits.q / 0.4

    def logistic(gain):
        return (1 - share) * softplus(-gain * data).mean() + share * softplus(gain * fake).mean()

    np.testing.assert_allclose(grads[CRITIC]["gain"], jax.grad(logistic)(0.4), rtol=1e-4)
    with_r1 = JointContrastELBO(Told(total), JSPi(share), regularizer=R1(3.0))
    again = jax.grad(lambda p: run(with_r1, params=p))(params)
    np.testing.assert_allclose(again["m"], grads["m"], rtol=1e-5)
    # The slope of gain * (x + z) is gain along both.
    np.testing.assert_allclose(again[CRITIC]["gain"] - grads[CRITIC]["gain"], 6 * 0.4, rtol=1e-4)
    lazy = JointContrastELBO(Told(total), JSPi(share), regularizer=R1(3.0, every=4))
    pulls = [
        jax.grad(lambda p, k=k: run(lazy, params=p, seed=k))(params)[CRITIC]["gain"]
        - jax.grad(lambda p, k=k: run(loss, params=p, seed=k))(params)[CRITIC]["gain"]
        for k in range(6)
    ]
    assert {round(float(pull), 2) for pull in pulls} == {0.0, round(4 * 6 * 0.4, 2)}


@pytest.mark.parametrize("divergence", [KL(), JSPi(0.3), ReverseKL()])
def test_players_follow_the_divergence(divergence):
    """Against a direct computation on the same pairs, the critic held fixed."""
    loss = JointContrastELBO(Told(log_ratio, 0.5), divergence)
    params = {**PARAMS, CRITIC: {"gain": jnp.asarray(0.5)}}
    value, grads = jax.value_and_grad(lambda p: run(loss, params=p))(params)
    key = random.split(random.split(random.key(0), 1)[0], 3)[0]
    pairs = []

    def record(values, x):
        pairs.append((values["x"], values["z"]))
        return jnp.zeros(6)

    JointContrastELBO(Told(record), divergence).logits(key, params, model, guide, X)
    (_, z), (x_model, z_model) = pairs
    eps, eps_z, eps_x = (z - 0.7 * X) / 0.6, z_model - 0.3, (x_model - z_model) / 0.5
    offset = jnp.log(1 / divergence.pi - 1)

    def ratio(x, z):
        return 0.5 * log_ratio({"x": x, "z": z}, None) - offset

    def guide_loss(m, s):
        each = ratio(X, m * X + s * eps)
        if isinstance(divergence, ReverseKL):
            return each.sum()
        return divergence.generator_loss(-each).mean()

    def model_loss(mu):
        at = mu + eps_z
        each = divergence.reversed.generator_loss(ratio(at + 0.5 * eps_x, at))
        return each.sum() if isinstance(divergence, ReverseKL) else each.mean()

    np.testing.assert_allclose(grads["m"], jax.grad(guide_loss, 0)(0.7, 0.6), rtol=1e-4)
    np.testing.assert_allclose(grads["s"], jax.grad(guide_loss, 1)(0.7, 0.6), rtol=1e-4)
    np.testing.assert_allclose(grads["mu"], jax.grad(model_loss)(0.3), rtol=1e-4)
    if isinstance(divergence, ReverseKL):
        np.testing.assert_allclose(value, guide_loss(0.7, 0.6), rtol=1e-5)
    else:
        ratios = -ratio(x_model, z_model), -ratio(X, z)
        np.testing.assert_allclose(value, divergence.estimate(*ratios), rtol=1e-4)


def test_a_simulated_datum_goes_with_the_latent_that_made_it():
    loss = JointContrastELBO(Told(lambda values, x: values["x"] - values["z"]))
    logits = loss.logits(random.key(0), ALL, model, guide, jnp.zeros(20_000))
    np.testing.assert_allclose(logits.q.std(), 0.5, rtol=0.03)
    np.testing.assert_allclose(logits.p.std(), 0.6, rtol=0.03)


# --- global latents

GLOBAL = {"mw": jnp.asarray(0.2), "m": jnp.asarray(0.7), "mu": jnp.asarray(0.3)}


def test_global_latents_keep_their_densities():
    def critic(values, x):
        assert values.batch_shape == values.arguments["x"].shape == (3,)
        w = values.arguments["w"]
        ratio = normal(values["z"], GLOBAL["m"] * values["x"] + w, 0.6)
        return ratio - normal(values["z"], w, 1.0) - normal(values["x"], values["z"], 0.5)

    loss = JointContrastELBO(Told(critic))
    params = {**GLOBAL, CRITIC: KNOWN}
    value, grads = jax.value_and_grad(lambda p: run(loss, global_model, global_guide, params=p))(
        params
    )
    key = random.split(random.split(random.key(0), 1)[0], 3)[0]
    guide_key = random.split(key, 3)[0]

    def by_hand(p):
        with handlers.trace() as sites:
            seeded = handlers.seed(handlers.substitute(global_guide, data=p), guide_key)
            seeded(X)
        w, z, x = sites["w"]["value"], sites["z"]["value"], X[sites["data"]["value"]]
        each = critic_ratio(z, x, w)
        return 2 * each.sum() + normal(w, p["mw"], 0.4) - normal(w, p["mu"], 1.0)

    def critic_ratio(z, x, w):
        ratio = normal(z, GLOBAL["m"] * x + w, 0.6)
        return ratio - normal(z, w, 1.0) - normal(x, z, 0.5)

    expected, exact = jax.value_and_grad(by_hand)(GLOBAL)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name in GLOBAL:
        np.testing.assert_allclose(grads[name], exact[name], rtol=1e-4, atol=1e-5)


# --- masks and noise


def test_masked_pairs_do_not_count():
    keep = jnp.asarray([True, True, False, True, False, True])

    def masked(x):
        with handlers.mask(mask=keep):
            model(x)

    def masked_guide(x):
        with handlers.mask(mask=keep):
            guide(jnp.where(keep, x, 0.0))

    x = X.at[2].set(jnp.nan).at[4].set(jnp.nan)
    for divergence in (ReverseKL(), JSPi(0.5)):
        loss = JointContrastELBO(Told(lambda values, x: 1 + 0 * total(values)), divergence)

        def value_of(params, loss=loss):
            return run(loss, masked, masked_guide, x, params)

        value, grads = jax.value_and_grad(value_of)(ALL)
        assert np.isfinite([value, *jax.tree.leaves(grads)]).all()
        if isinstance(divergence, ReverseKL):
            np.testing.assert_allclose(value, 4.0)


def test_noise_is_on_both_sides():
    def logits(shown):
        loss = JointContrastELBO(Told(shown), noise={"x": GaussianNoise(2.0)})
        return loss.logits(random.key(0), ALL, model, guide, jnp.zeros(20_000))

    data, fake, _, _ = logits(lambda values, x: values["x"])
    np.testing.assert_allclose(data.std(), 2.0, rtol=0.03)
    np.testing.assert_allclose(fake.std(), (1 + 0.25 + 4) ** 0.5, rtol=0.03)
    # The guide is given what the critic sees.
    data = logits(lambda values, x: values["z"] - 0.7 * values["x"]).data
    np.testing.assert_allclose(data.std(), 0.6, rtol=0.03)


# --- in SVI


@pytest.mark.parametrize("divergence", [KL(), JSPi(0.5), ReverseKL()])
def test_it_runs_in_svi(divergence):
    loss = JointContrastELBO(concat_sites(linen.Dense(1), "x", "z"), divergence, num_particles=2)
    optim = two_player(optax.sgd(1e-2), optax.sgd(1e-2), 2)
    svi = SVI(model, loss.register(model, guide), optim, loss)
    result = svi.run(random.key(0), 4, X, progress_bar=False)
    assert np.isfinite(result.losses).all()
    assert result.params[CRITIC]["kernel"].shape == (2, 1)
    assert jnp.isfinite(svi.evaluate(result.state, X))
