# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""PriorContrastELBO in an unmodified SVI: players, modules, transforms, schedules, training."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen, nnx
from jax import random
from jax.nn import softplus
from numpyro.infer import SVI, Predictive
from numpyro_contrast import (
    CRITIC,
    KNOWN,
    PARAMS,
    Told,
    X,
    affine,
    guide,
    logits_of,
    model,
    silent,
    total,
    value_and_grads,
    value_of,
)

from numpyro_spread import R1, GaussianNoise, PriorContrastELBO, concat_sites, two_player
from numpyro_spread.ratio import MLPCritic

ALL = {**PARAMS, CRITIC: {"gain": jnp.asarray(0.4)}}


def optim(steps=1, rate=1e-2):
    return two_player(optax.sgd(rate), optax.sgd(rate), steps)


def fitted(loss, *args, model=model, guide=guide, steps=3, **kwargs):
    svi = SVI(model, loss.register(model, guide), optim(), loss)
    start = jax.jit(lambda key: svi.init(key, *args, **kwargs))(random.key(0))
    options = {"init_state": start, "progress_bar": False}
    return svi, svi.run(random.key(0), steps, *args, **options, **kwargs)


def both_players(loss, params=ALL, model=model, guide=guide, x=X):
    return value_and_grads(loss, params, model, guide, x)[1]


# --- two players


@pytest.mark.parametrize(
    ("draws", "adaptive"),
    [
        (1, True),
        pytest.param(1, False, marks=pytest.mark.slow),
        pytest.param(7, True, marks=pytest.mark.slow),
        (7, False),
    ],
)
def test_the_critic_gets_the_gradient_of_the_logistic_loss_alone(adaptive, draws):
    options = {"adaptive": adaptive, "num_critic_draws": draws}
    grads = both_players(PriorContrastELBO(Told(total), **options))
    seen = []

    def record(values, *args):
        jax.debug.callback(lambda z: seen.append(np.array(z)), values["z"])
        return jnp.zeros(values.batch_shape)

    recorder = PriorContrastELBO(Told(record), **options)
    recorder.loss(random.key(0), ALL, model, guide, X)
    jax.effects_barrier()
    if draws > 1:  # callbacks come one by one
        own, rest = seen[0], np.stack(seen[1:])
        data, contrast = rest[:draws], rest[draws:]
    else:
        own, data, contrast = seen
        np.testing.assert_array_equal(own, data)
    assert np.shape(contrast) == np.shape(data)

    def logistic(gain):
        return (softplus(-gain * data).mean() + softplus(gain * contrast).mean()) / 2

    expected = jax.grad(logistic)(ALL[CRITIC]["gain"])
    np.testing.assert_allclose(grads[CRITIC]["gain"], expected, rtol=1e-4)
    # A penalty on the critic moves nobody else.
    twice = PriorContrastELBO(Told(total), **options, regularizer=R1(50.0))
    again = both_players(twice)
    for name in PARAMS:
        np.testing.assert_allclose(again[name], grads[name], rtol=1e-5)


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_gradient_is_the_mean_over_particles(vectorize):
    """Of a critic that says the same of all, it is known whatever the draws."""
    critic = Told(lambda values, x: jnp.ones(values.batch_shape))
    loss = PriorContrastELBO(critic, num_particles=3, vectorize_particles=vectorize)
    np.testing.assert_allclose(both_players(loss)[CRITIC]["gain"], np.tanh(0.2) / 2, rtol=1e-5)


def test_weights_count_for_the_critic():
    weight = jnp.asarray([1.0, 0.1, 2.0, 0.5, 3.0, 1.0])

    def weighted(handler):
        def guide(x):
            with numpyro.plate("data", len(x)), handler:
                numpyro.sample("z", affine(x, 0.6))

        return guide

    scaled = weighted(numpyro.handlers.scale(scale=weight))
    options = {"num_critic_draws": 1, "num_moment_draws": 8}
    loss = PriorContrastELBO(Told(total), **options)
    logits = logits_of(loss, ALL, model, scaled, X)
    np.testing.assert_array_equal(logits.weights_p, weight)
    np.testing.assert_array_equal(logits.weights_q, weight)
    masked = weighted(numpyro.handlers.mask(mask=weight > 0.1))
    logits = logits_of(loss, ALL, model, masked, X)
    np.testing.assert_array_equal(logits.weights_p, weight > 0.1)
    assert logits.p[1] == logits.q[1] == 0
    # A number for all cancels.
    half = weighted(numpyro.handlers.scale(scale=0.5))
    plain = weighted(numpyro.handlers.mask(mask=True))
    critics = [both_players(loss, guide=each)[CRITIC]["gain"] for each in (half, plain)]
    np.testing.assert_allclose(*critics, rtol=1e-6)
    assert loss.logits(random.key(0), ALL, model, half, X).data_weights is None


def test_r1_is_that_of_the_guide_draws():
    options = {"num_critic_draws": 5, "num_moment_draws": 8}
    plain = both_players(PriorContrastELBO(Told(total), **options))
    with_r1 = both_players(PriorContrastELBO(Told(total), **options, regularizer=R1(3.0)))
    # The slope of gain * z is gain everywhere.
    difference = with_r1[CRITIC]["gain"] - plain[CRITIC]["gain"]
    np.testing.assert_allclose(difference, 3.0 * 0.4, rtol=1e-4)
    lazy = PriorContrastELBO(Told(total), **options, regularizer=R1(3.0, every=4))
    assert np.isfinite(both_players(lazy)[CRITIC]["gain"])


class Head(linen.Module):
    @linen.compact
    def __call__(self, x):
        w = self.param("w", linen.initializers.constant(0.5), ())
        scale = self.param("scale", linen.initializers.constant(0.9), ())
        return w * x, scale


def test_the_head_is_fitted_to_the_guide():
    params = {**ALL, "discriminator$head": {"w": jnp.asarray(0.5), "scale": jnp.asarray(0.9)}}
    loss = PriorContrastELBO(Told(total), head=Head(), num_critic_draws=2000)
    grads = both_players(loss, params)
    m, s, x = PARAMS["m"], PARAMS["s"], X

    def cross_entropy(head):
        square = s**2 + (m * x - head["w"] * x) ** 2
        return (jnp.log(head["scale"]) + square / (2 * head["scale"] ** 2)).mean()

    expected = jax.grad(cross_entropy)(params["discriminator$head"])
    for name, grad in grads["discriminator$head"].items():
        np.testing.assert_allclose(grad, expected[name], atol=0.02)


# --- everything around a step


def test_every_method_of_svi_serves():
    loss = PriorContrastELBO(concat_sites(linen.Dense(1), "z", "x"))
    svi, result = fitted(loss, X)
    assert set(result.params) == {"m", "s", "mu", CRITIC}
    assert np.isfinite(result.losses).all()
    state = result.state
    assert np.isfinite(jax.jit(svi.evaluate)(state, X))
    _, loss_of_update = jax.jit(svi.update)(state, X)
    stable, loss_of_stable = jax.jit(svi.stable_update)(state, X)
    assert not np.array_equal(svi.get_params(stable)["m"], result.params["m"])
    _, losses = jax.lax.scan(lambda s, _: svi.update(s, X), state, length=3)
    assert len(set(losses.tolist())) == 3
    np.testing.assert_allclose([loss_of_stable, losses[0]], loss_of_update, rtol=1e-5)
    draws = Predictive(svi.guide, params=result.params, num_samples=4)(random.key(0), X)
    assert draws["z"].shape == (4, 6)
    assert len(np.unique(draws["z"])) == 24


def test_the_same_key_gives_the_same_value():
    loss = PriorContrastELBO(Told(total))
    evaluate = jax.jit(lambda key: loss.loss(key, ALL, model, guide, X))
    values = [float(evaluate(random.key(k))) for k in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


CRITICS = {
    "linen": lambda: concat_sites(MLPCritic((8,)), "z", "x"),
    "nnx": lambda: concat_sites(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), "z", "x"),
    "equinox": lambda: concat_sites(equinox.nn.Linear(2, 1, key=random.key(0)), "z", "x"),
    "norm": lambda: concat_sites(linen.BatchNorm(use_running_average=False), "z"),
}


@pytest.mark.parametrize("library", CRITICS)
def test_critics_of_every_library_are_trained(library):
    loss = PriorContrastELBO(CRITICS[library]())
    svi = SVI(model, loss.register(model, guide), optim(rate=0.1), loss)
    state = jax.jit(svi.init)(random.key(0), X)
    before = jax.tree.leaves(svi.get_params(state)[CRITIC])
    after = jax.tree.leaves(svi.get_params(jax.jit(svi.update)(state, X)[0])[CRITIC])
    assert any(not np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_critic_per_site_has_params_and_logits_of_its_own():
    def two(x):
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(0.0, 1.0))

    def two_guide(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", affine(x, 0.6))
            numpyro.sample("y", affine(z, 0.6))

    critics = {"y": concat_sites(linen.Dense(1), "y", "z"), "z": concat_sites(linen.Dense(1), "z")}
    loss = PriorContrastELBO(critics)

    def shapes(loss):
        """Of the critics' params and of their logits; nothing is computed."""
        guide = loss.register(two, two_guide)
        svi = SVI(two, guide, optim(), loss)

        def look(key):
            params = svi.get_params(svi.init(key, X))
            return params[CRITIC], loss.logits(key, params, two, guide, X)

        return jax.eval_shape(look, random.key(0))

    params, logits = shapes(loss)
    assert params["y"]["kernel"].shape == (2, 1)
    assert params["z"]["kernel"].shape == (1, 1)
    assert set(logits) == {"y", "z"}
    assert logits["y"].p.shape == (21, 6)
    params, logits = shapes(PriorContrastELBO(concat_sites(linen.Dense(1))))
    assert params["kernel"].shape == (2, 1)
    assert logits.p.shape == (6,)


def test_noise_may_have_params():
    def delta_model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Delta(z), obs=x)

    def noise(x):
        return {"x": GaussianNoise(numpyro.param("noise", 0.5))}

    loss = PriorContrastELBO(concat_sites(linen.Dense(1), "z", "x"), noise)
    _, result = fitted(loss, X, model=delta_model)
    assert result.params["noise"] != 0.5
    assert np.isfinite(result.losses).all()


# --- annealing


def warm(x, beta=None):
    return model(x)


def warm_guide(x, beta=None):
    return guide(x)


def test_the_likelihood_warms_up_over_a_number_of_steps():
    loss = PriorContrastELBO(Told(total), annealing=2)
    svi = SVI(model, loss.register(model, guide), optim(rate=0.0), loss)
    state = jax.jit(svi.init)(random.key(0), X)
    assert state.mutable_state == {"discriminator$steps": 0}
    params = svi.get_params(state)
    weighed = PriorContrastELBO(Told(total), annealing=lambda x, beta: beta)

    @jax.jit
    def at(key, beta):
        return weighed.loss(key, params, warm, warm_guide, X, beta=beta)

    update, evaluate = jax.jit(svi.update), jax.jit(svi.evaluate)
    for step in range(3):
        _, key = random.split(state.rng_key)
        expected, evaluated = at(key, min(1.0, (step + 1) / 2)), at(key, 1.0)
        np.testing.assert_allclose(evaluate(state, X), evaluated, rtol=1e-5)
        state, value = update(state, X)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert (abs(value - evaluated) > 1e-3) == (step < 1)
    assert state.mutable_state == {"discriminator$steps": 3}
    several = PriorContrastELBO(Told(total), annealing=4, num_particles=3)
    _, result = fitted(several, X)
    assert result.state.mutable_state == {"discriminator$steps": 3}


def test_the_weight_may_be_an_argument_and_acts_on_observations_alone():
    loss = PriorContrastELBO(Told(silent), annealing=lambda x, beta: beta)
    evaluate = jax.jit(lambda beta: loss.loss(random.key(0), ALL, warm, warm_guide, X, beta=beta))
    values = [evaluate(beta) for beta in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(values[1], (values[0] + values[2]) / 2, rtol=1e-5)
    z = numpyro.handlers.trace(numpyro.handlers.seed(guide, random.split(random.key(0))[1]))
    z = numpyro.handlers.substitute(z, data=PARAMS)
    with numpyro.handlers.trace() as sites:
        z(X)
    log_lik = dist.Normal(sites["z"]["value"], 0.5).log_prob(X).sum()
    np.testing.assert_allclose(values[0] - values[2], log_lik, rtol=1e-4)


# --- autoguides


@pytest.mark.parametrize("adaptive", [pytest.param(True, marks=pytest.mark.slow), False])
def test_auto_implicit_over_global_and_local_latents(adaptive):
    from numpyro_spread.autoguide import AutoImplicit

    def positive(x):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.HalfNormal(1.0))
            numpyro.sample("x", dist.Normal(z + loc, scale), obs=x)

    auto = AutoImplicit(positive, noise_dim=2, hidden=(8,))
    critics = {
        "_auto_latent": concat_sites(linen.Dense(1), "_auto_latent"),
        "_auto_data": concat_sites(linen.Dense(1), "_auto_data", "loc"),
    }
    loss = PriorContrastELBO(critics, adaptive=adaptive)
    svi, result = fitted(loss, X, model=positive, guide=auto)
    assert np.isfinite(result.losses).all()
    logits = logits_of(loss, result.params, positive, svi.guide, X)
    assert logits["_auto_latent"].q.shape == (128,)
    if adaptive:
        return

    def show(values, *args):
        return values["_auto_latent"][..., 0]

    told = {"_auto_latent": Told(show), "_auto_data": Told(silent)}
    params = {**result.params, CRITIC: dict.fromkeys(told, KNOWN)}
    loss = PriorContrastELBO(told, adaptive=False, num_critic_draws=2000)
    shown = logits_of(loss, params, positive, auto, X)["_auto_latent"].model
    # The first unconstrained latent under the prior: log scale ~ N(0, 1/2), or loc ~ N(0, 1).
    assert min(abs(shown.std() - 0.5), abs(shown.std() - 1.0)) < 0.08
    # No prior and no Jacobian is left beside the likelihood and the logit.
    silent_loss = PriorContrastELBO({site: Told(silent) for site in told}, adaptive=False)
    value = value_of(silent_loss, params, positive, auto, X, seed=4)

    @jax.jit
    def latents(params):
        seeded = numpyro.handlers.seed(auto, random.split(random.key(4))[1])
        sites = numpyro.handlers.trace(numpyro.handlers.substitute(seeded, data=params))
        return {name: site["value"] for name, site in sites.get_trace(X).items()}

    z, loc, scale = (latents(result.params)[name] for name in ("z", "loc", "scale"))
    log_lik = dist.Normal(z + loc, scale).log_prob(X).sum()
    np.testing.assert_allclose(value, -log_lik, rtol=1e-4)
