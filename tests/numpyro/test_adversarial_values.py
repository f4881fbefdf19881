# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Adversarial losses in NumPyro: known divergences, exact gradients, extremes."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import linen
from jax import lax, random
from numpyro.infer import SVI
from scipy import optimize, special

from numpyro_spread import (
    KL,
    AdversarialDivergence,
    ChiSquared,
    GaussianNoise,
    Jeffreys,
    JSPi,
    ReverseChiSquared,
    ReverseKL,
    SquaredHellinger,
    SupportMismatchWarning,
    WassersteinCritic,
    concat_sites,
    two_player,
)
from numpyro_spread.ratio import QuadraticCritic
from spread_analysis import reference
from spread_core.logits import Logits

QS = [(1.0, 2.0), (0.0, 1.5), (2.0, 1.0)]
COUNT = 10_000
RNG = np.random.default_rng(0)
CRITIC = "discriminator$params"


def guide(*args):
    pass


def location_scale(x, eps):
    """Draws loc + exp(log_scale) eps; the noise is an argument, so that nothing is random."""
    loc = numpyro.param("loc", 1.0)
    log_scale = numpyro.param("log_scale", math.log(2.0))
    with numpyro.plate("data", len(eps)):
        numpyro.sample("x", dist.Delta(loc + jnp.exp(log_scale) * eps), obs=x)


def normal_params(q, critic):
    loc, log_scale = jnp.asarray(q[0]), jnp.asarray(math.log(q[1]))
    return {"loc": loc, "log_scale": log_scale, CRITIC: critic}


def draws(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def both_players(loss, params, model, *args):
    def value(params):
        return loss.loss(random.key(3), params, model, guide, *args)

    return jax.value_and_grad(value)(params)


# --- values


@pytest.mark.parametrize("q", QS)
def test_a_fitted_quadratic_critic_reports_the_divergence(q):
    data, eps = draws(2, COUNT), draws(2, COUNT)
    critic = concat_sites(QuadraticCritic(), "x")
    for pi in (0.1, 0.5, 0.9):
        loss = AdversarialDivergence(critic, JSPi(pi))

        def as_params(flat):
            second, first, constant = flat
            return {"matrix": second[None, None], "vector": first[None], "constant": constant[None]}

        @jax.jit
        @jax.value_and_grad
        def report(flat, x, eps, loss=loss, as_params=as_params):
            params = normal_params(q, as_params(flat))
            return loss.loss(random.key(0), params, location_scale, guide, x, eps)

        def objective(flat, report=report, pi=pi):
            value, grad = report(jnp.asarray(flat, jnp.float32), data[0], eps[0])
            return JSPi(pi).upper - float(value), np.asarray(grad, float)

        # The value is clipped at zero, which must not stop the fit before it began.
        start = [0.0, 0.0, math.log(pi / (1 - pi))]
        fit = optimize.minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-4})
        exact = reference.js_divergence_normals(0, 1, *q, pi)
        for side in (0, 1):  # seen in training, and held out
            value = float(report(jnp.asarray(fit.x, jnp.float32), data[side], eps[side])[0])
            assert value == pytest.approx(exact, abs=4 * 0.003), (pi, side)
        if pi == 0.5:
            params = normal_params(q, as_params(jnp.asarray(fit.x, jnp.float32)))
            for divergence, expected in (
                (KL(), reference.kl_normals(0, 1, *q)),
                (ReverseKL(), reference.kl_normals(*q, 0, 1)),
            ):
                loss = AdversarialDivergence(critic, divergence)
                args = location_scale, guide, data[0], eps[0]
                value = float(loss.loss(random.key(0), params, *args))
                # The log-ratio's deviation is 2 at most, and the critic adds as much again.
                assert value == pytest.approx(expected, abs=4 * 2 * 2 / math.sqrt(COUNT))


class OptimalCritic(linen.Module):
    """The best logit of fixed params, which nothing can change."""

    pi: float
    loc: float
    scale: float

    def __call__(self, values, *args):
        x = values["x"]
        p, q = dist.Normal(0.0, 1.0), dist.Normal(self.loc, self.scale)
        return p.log_prob(x) - q.log_prob(x) + math.log(self.pi / (1 - self.pi))


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
def test_generator_gradients_at_the_optimal_critic(pi):
    q = (1.0, 2.0)
    js = np.array(reference.divergence_gradient_normals(0, 1, *q, pi))
    kl = reference.divergence_gradient_normals(0, 1, *q, pi, "kl")
    reverse = np.array(reference.divergence_gradient_normals(0, 1, *q, pi, "reverse_kl"))

    class PiReverse(ReverseKL):
        pass

    class PiKL(KL):
        pass

    PiReverse.pi = PiKL.pi = pi  # the gradient of both is the same whatever pi
    cases = {
        "saturating": (JSPi(pi), "divergence", js),
        "normalised": (JSPi(pi, normalised=True), "divergence", js / (pi - pi**2)),
        "non-saturating": (JSPi(pi), "non_saturating", reverse - js / (1 - pi)),
        "reverse-kl": (PiReverse(), "divergence", reverse),
        "kl": (PiKL(), "divergence", kl),
    }
    # The midpoints of equal shares of probability, so that the mean is a quadrature.
    eps = jnp.asarray(special.ndtri((np.arange(20_000) + 0.5) / 20_000))
    x = draws(10)
    for name, (divergence, form, expected) in cases.items():
        for update in ("one_pass", "two_pass"):
            critic = OptimalCritic(pi, *q)
            loss = AdversarialDivergence(critic, divergence, generator=form, update=update)

            def value(params, loss=loss):
                return loss.loss(random.key(0), params, location_scale, guide, x, eps)

            found = jax.grad(value)(normal_params(q, {}))
            gradient = [float(found["loc"]), float(found["log_scale"]) / q[1]]
            np.testing.assert_allclose(gradient, expected, rtol=2e-3, atol=3e-4, err_msg=name)


# --- extremes


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


class Line(linen.Module):
    offset: float = 0.0

    @linen.compact
    def __call__(self, values, *args):
        return self.param("slope", linen.initializers.ones, ()) * values["x"] + self.offset


# A slope of 1e30 where float32 can hold the gradient at all.
BOUNDED = ("js", "js-normalised", "non-saturating", "reverse-kl")


@pytest.mark.parametrize("form", FORMS)
def test_extreme_logits_leave_no_nan(form):
    make, generator_form = FORMS[form]
    x, eps = draws(20), draws(20)
    slopes = jnp.array([1.0, 80.0, 1e3] + [1e30] * (form in BOUNDED), jnp.float32)
    for offset in (-90.0, 0.0, 90.0):
        found = []
        for update in ("one_pass", "two_pass"):
            loss = AdversarialDivergence(
                Line(offset), make(), generator=generator_form, update=update
            )

            def both(slope, loss=loss):
                params = normal_params((1.0, 2.0), {"slope": slope})
                return both_players(loss, params, location_scale, x, eps)

            values, gradients = jax.vmap(both)(slopes)
            assert not jnp.isnan(values).any()
            found.append(gradients)
        for one, other in zip(*map(jax.tree.leaves, found), strict=True):
            assert jnp.isfinite(one).all()
            np.testing.assert_allclose(one, other, rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
def test_the_value_stays_between_zero_and_the_entropy(pi):
    x, eps = draws(50), draws(50)

    @jax.jit
    def value(slope):
        loss = AdversarialDivergence(Line(3.0), JSPi(pi))
        params = normal_params((1.0, 2.0), {"slope": slope})
        return loss.loss(random.key(0), params, location_scale, guide, x, eps)

    for slope in (-50.0, -1.0, 0.0, 1.0, 50.0):
        assert 0 <= float(value(slope)) <= reference.class_entropy(pi) + 1e-6


def _apart(noise, steps, pi, learning_rate):
    def model(x):
        loc = numpyro.param("loc", -4.0)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 0.01))
            numpyro.sample("x", dist.Delta(loc + z), obs=x)

    loss = AdversarialDivergence(concat_sites(linen.Dense(1), "x"), JSPi(pi), noise)
    optim = two_player(optax.sgd(0.0), optax.adam(learning_rate))
    svi = SVI(model, loss.register(model, guide), optim, loss)
    result = svi.run(random.key(0), steps, 4 + 0.01 * draws(64), progress_bar=False)
    return np.asarray(result.losses)


def test_disjoint_supports_reach_the_entropy_and_warn_once():
    with pytest.warns(SupportMismatchWarning, match=r'noise=\{"x": GaussianNoise') as caught:
        values = _apart(None, 400, 0.1, 1.0)
    assert len([w for w in caught if w.category is SupportMismatchWarning]) == 1
    assert values[-1] == pytest.approx(reference.class_entropy(0.1), abs=1e-3)


def test_noise_makes_supports_overlap():
    with warnings.catch_warnings():
        warnings.simplefilter("error", SupportMismatchWarning)
        values = _apart({"x": GaussianNoise(8.0)}, 400, 0.5, 0.1)
    # Two Gaussians one deviation apart.
    assert values[200:].mean() == pytest.approx(0.1114215, abs=0.02)


def test_bad_steps_far_apart_do_not_add_up():
    loss = AdversarialDivergence(Line(), JSPi(0.5))
    apart, mixed = jnp.array([20.0]), jnp.array([0.5])

    @jax.jit
    def watch(key):
        def body(one, key):
            for i in range(10):
                logits = (apart, -apart) if i == 0 else (mixed, mixed)
                one = loss._watch(one, random.fold_in(key, i), Logits(*logits, None, None))
            return one, None

        return lax.scan(body, jnp.ones(()), random.split(key, 40))

    with warnings.catch_warnings():
        warnings.simplefilter("error", SupportMismatchWarning)
        jax.block_until_ready(watch(random.key(0)))


# --- Wasserstein


def test_wasserstein_value_and_gradients_on_a_line():
    x, eps = draws(30), draws(20)
    params = normal_params((1.0, 2.0), {"slope": jnp.asarray(1.5)})
    loss = WassersteinCritic(Line(), gradient_penalty=0)
    value, found = both_players(loss, params, location_scale, x, eps)
    fake = 1.0 + 2.0 * eps
    assert float(value) == pytest.approx(1.5 * float(x.mean() - fake.mean()), rel=1e-5)
    np.testing.assert_allclose(found[CRITIC]["slope"], fake.mean() - x.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["loc"], -1.5, rtol=1e-5)
    np.testing.assert_allclose(found["log_scale"], -1.5 * 2.0 * eps.mean(), rtol=1e-5)
    # The slope of 4 (|c| - 1)² at 1.5 is 4.
    eps = jnp.resize(eps, 30)
    loss = WassersteinCritic(Line(), gradient_penalty=4.0)
    _, found = both_players(loss, params, location_scale, x, eps)
    expected = (1.0 + 2.0 * eps).mean() - x.mean() + 4.0
    np.testing.assert_allclose(found[CRITIC]["slope"], expected, rtol=1e-5)


def test_wasserstein_finds_a_location():
    def model(x):
        loc = numpyro.param("loc", -1.0)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 0.1))
            numpyro.sample("x", dist.Delta(loc + z), obs=x)

    # A heavier penalty would not let a straight line change its direction.
    loss = WassersteinCritic(concat_sites(linen.Dense(1), "x"), gradient_penalty=0.1)
    optim = two_player(*[optax.adam(0.02, b1=0.0, b2=0.9)] * 2, 3)
    svi = SVI(model, loss.register(model, guide), optim, loss)
    x = 1 + 0.1 * draws(64)
    state = svi.init(random.key(0), x)

    def body(state, _):
        state, _ = svi.update(state, x)
        return state, svi.get_params(state)["loc"]

    _, locations = lax.scan(body, state, length=800)
    assert float(locations[-300:].mean()) == pytest.approx(1.0, abs=0.2)
