# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""JointContrastELBO: pairs of data and latents, their players, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen
from jax import random
from jax.nn import softplus
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.primitives import mutable as numpyro_mutable
from numpyro_contrast import CRITIC, KNOWN, Told, affine, mean_and_error, normal, silent, total

from numpyro_spread import (
    KL,
    R1,
    Divergence,
    GaussianNoise,
    JointContrastELBO,
    JSPi,
    ReverseKL,
    TotalVariation,
    concat_sites,
    two_player,
)

X = jnp.asarray([0.5, -1.0, 2.0, 0.1, -0.4, 1.3])
PARAMS = {"m": jnp.asarray(0.7), "s": jnp.asarray(0.6), "mu": jnp.asarray(0.3)}
ALL = {**PARAMS, CRITIC: KNOWN}


def model(x):
    """z ~ N(mu, 1), x ~ N(z, 1/2), drawn without a density."""
    mu = numpyro.param("mu", 0.3)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", affine(mu, 1.0))
        numpyro.sample("x", affine(z, 0.5), obs=x)


def guide(x):
    m, s = numpyro.param("m", 0.7), numpyro.param("s", 0.6)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", affine(m * x, s))


def dense_guide(x):
    m, s = numpyro.param("m", 0.7), numpyro.param("s", 0.6)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Normal(m * x, s))


def log_joint(values, mu):
    return normal(values["z"], mu, 1.0) + normal(values["x"], values["z"], 0.5)


def log_guide(values):
    return normal(values["z"], PARAMS["m"] * values["x"], PARAMS["s"])


def log_ratio(values, x):
    """Log q(z | x) / p(x, z): the joints' ratio less the unknown density of the data."""
    return log_guide(values) - log_joint(values, PARAMS["mu"])


def run(loss, model=model, guide=guide, x=X, params=ALL, seed=0):
    return loss.loss(random.key(seed), params, model, guide, x)


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


def global_model(x):
    w = numpyro.sample("w", dist.Normal(numpyro.param("mu", 0.3), 1.0))
    with numpyro.plate("data", len(x), subsample_size=3) as indices:
        z = numpyro.sample("z", affine(w, 1.0))
        numpyro.sample("x", affine(z, 0.5), obs=x[indices])


def global_guide(x):
    w = numpyro.sample("w", dist.Normal(numpyro.param("mw", 0.2), 0.4))
    with numpyro.plate("data", len(x), subsample_size=3) as indices:
        numpyro.sample("z", affine(numpyro.param("m", 0.7) * x[indices] + w, 0.6))


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


# --- neural posterior estimation


def test_kl_with_a_density_needs_no_critic():
    x = jnp.zeros(20_000)
    loss = JointContrastELBO(divergence=KL())
    value, grads = jax.value_and_grad(lambda p: run(loss, model, dense_guide, x, p))(PARAMS)

    def cross_entropy(p):
        # E of (z - m x)²: z ~ N(mu, 1), x = z + N(0, 1/4)
        square = (1 - p["m"]) ** 2 * (1 + 0.3**2) + p["m"] ** 2 * 0.25
        return 0.5 * jnp.log(2 * jnp.pi * p["s"] ** 2) + square / (2 * p["s"] ** 2)

    exact, exact_grads = jax.value_and_grad(cross_entropy)(PARAMS)
    np.testing.assert_allclose(value, exact, atol=0.02)
    for name in ("m", "s"):
        np.testing.assert_allclose(grads[name], exact_grads[name], atol=0.06)
    assert grads["mu"] == 0  # the simulator is not trained by it
    noisy = JointContrastELBO(divergence=KL(), noise={"x": GaussianNoise(2.0)})
    assert run(noisy, model, dense_guide, x, PARAMS) > value + 0.5


def test_scales_and_masks_do_not_change_the_mean():
    first = jnp.arange(6) < 3

    def within(handler):
        def guide(x):
            with handler:
                dense_guide(x)

        return guide

    loss = JointContrastELBO(divergence=KL())
    plain = run(loss, model, dense_guide, X, PARAMS)
    scaled = run(loss, model, within(handlers.scale(scale=2.0)), X, PARAMS)
    halves = [
        run(loss, model, within(handlers.mask(mask=mask)), X, PARAMS) for mask in (first, ~first)
    ]
    np.testing.assert_allclose(scaled, plain, rtol=1e-5)
    np.testing.assert_allclose(sum(halves) / 2, plain, rtol=1e-5)
    assert abs(halves[0] - plain) > 1e-3


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


# --- refusals


class Own(KL):
    reversed = Divergence.reversed


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"num_particles must be a positive integer, got 0"):
        JointContrastELBO(Told(silent), num_particles=0)
    with pytest.raises(TypeError, match=r"divergence must be a Divergence such as JSPi"):
        JointContrastELBO(Told(silent), "kl")
    with pytest.raises(NotImplementedError):
        JointContrastELBO(Told(silent), TotalVariation())
    with pytest.raises(TypeError, match=r"regularizer must be a Regularizer"):
        JointContrastELBO(Told(silent), regularizer=2.0)
    with pytest.raises(TypeError, match=r"discriminator must be a module"):
        JointContrastELBO(silent)
    with pytest.raises(ValueError, match=r"with ReverseKL needs a discriminator"):
        JointContrastELBO()
    with pytest.raises(ValueError, match=r"with logits\(\) needs a discriminator"):
        JointContrastELBO(divergence=KL()).logits(random.key(0), ALL, model, guide, X)
    with pytest.raises(ValueError, match=r"loss.register\(model, guide\)"):
        run(JointContrastELBO(Told(silent)), params=PARAMS)


def unobserved(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", affine(0.0, 1.0))


def with_factor(x):
    model(x)
    with numpyro.plate("data", len(x)):
        numpyro.factor("f", jnp.zeros(len(x)))


def implicit_global(x):
    w = numpyro.sample("w", affine(0.2, 0.4))
    with numpyro.plate("data", len(x), subsample_size=3):
        numpyro.sample("z", affine(w, 0.6))


def nothing(x):
    pass


def test_sites_that_cannot_be_contrasted_are_refused():
    loss, forward = JointContrastELBO(Told(silent)), JointContrastELBO(divergence=KL())
    for each in (loss, forward):
        with pytest.raises(ValueError, match=r"the model observes no site"):
            run(each, unobserved, dense_guide)
        with pytest.raises(ValueError, match=r"guide has no latent site of the model in"):
            run(each, model, nothing)
    with pytest.raises(ValueError, match=r"site 'f' is a factor"):
        run(loss, with_factor)
    with pytest.raises(ValueError, match=r"guide site 'w' is implicit but stands outside of the"):
        run(loss, global_model, implicit_global)
    with pytest.raises(ValueError, match=r"'w' stands outside .*ReverseKL\(\) can add.*not JSPi"):
        run(JointContrastELBO(Told(silent), JSPi(0.5)), global_model, global_guide)
    with pytest.raises(ValueError, match=r"guide site 'z' has no density, so KL\(\) needs a disc"):
        run(forward)
    with pytest.raises(ValueError, match=r"site 'x': the model simulates values of shape \(3,\)"):
        run(forward, global_model, global_guide)
    with pytest.raises(ValueError, match=r"noise names the site 'y', but the model has no"):
        run(JointContrastELBO(Told(silent), noise={"y": GaussianNoise(1.0)}, data={"y": "x"}))


def test_a_divergence_says_what_it_is_reversed():
    loss = JointContrastELBO(Told(total), Own())
    with pytest.raises(NotImplementedError, match=r"Own does not say .* `reversed`"):
        jax.grad(lambda p: run(loss, params=p))(ALL)
    # Only a model that is learned asks.
    grads = jax.grad(lambda m: run(loss, params={**ALL, "m": m}))(ALL["m"])
    assert grads != 0


def test_mutable_state_of_the_user_takes_one_particle():
    def counting(x):
        numpyro_mutable("count", jnp.zeros(()))
        guide(x)

    params = {**ALL, "count": jnp.zeros(())}
    with pytest.raises(NotImplementedError, match=r"mutable state, and num_particles=2"):
        run(JointContrastELBO(Told(silent), num_particles=2), guide=counting, params=params)
    assert jnp.isfinite(run(JointContrastELBO(Told(silent)), guide=counting, params=params))


# --- Deltas, and what a datum is


def hierarchical(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_global_delta_of_noise_is_refused():
    def tempting(x):
        m, s = numpyro.param("m", 0.7), numpyro.param("s", 0.6)
        eps = numpyro.sample("eps", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        mu = numpyro.sample("mu", dist.Delta(m + s * eps))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", affine(mu * jnp.ones(len(x)), 1.0))

    loss = JointContrastELBO(concat_sites(linen.Dense(1), "x", "z", "mu"))
    guide = loss.register(hierarchical, tempting)
    svi = SVI(hierarchical, guide, optax.adam(1e-3), loss)
    state = svi.init(random.key(0), X)
    with pytest.raises(ValueError, match="'mu' is a Delta at a function of random noise"):
        svi.evaluate(state, X)


def test_a_delta_is_no_density_for_posterior_estimation():
    def point(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Delta(0.7 * x))

    with pytest.raises(ValueError, match="'z' has no density"):
        JointContrastELBO(divergence=KL()).loss(random.key(0), PARAMS, model, point, X)


def test_posterior_estimation_counts_data_and_not_elements():
    def known(x):
        mu = numpyro.sample("mu", dist.Uniform(-100.0, 100.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Uniform(mu - 100.0, mu + 100.0))

    def rows(x):
        with numpyro.plate("rows", len(x), dim=-2):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            with numpyro.plate("columns", 3, dim=-1):
                b = numpyro.sample("b", dist.Normal(a, 1.0))
                numpyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def rows_guide(x):
        with numpyro.plate("rows", len(x), dim=-2):
            numpyro.sample("a", dist.Uniform(-100.0, 100.0))
            with numpyro.plate("columns", 3, dim=-1):
                numpyro.sample("b", dist.Uniform(-100.0, 100.0))

    loss = JointContrastELBO(divergence=KL())

    def value_of(*args):
        return jax.jit(lambda key: loss.loss(key, {}, *args))(random.key(0))

    value = value_of(hierarchical, known, X)
    np.testing.assert_allclose(value, (1 + len(X)) * np.log(200.0), rtol=1e-6)
    value = value_of(rows, rows_guide, jnp.zeros((4, 3)))
    np.testing.assert_allclose(value, 4 * np.log(200.0), rtol=1e-6)
