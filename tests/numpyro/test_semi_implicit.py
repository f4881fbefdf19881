# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The semi-implicit bound: what it computes, and how it composes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from jax.tree_util import Partial
from numpyro import handlers, infer
from numpyro.infer import SVI, Trace_ELBO
from scipy import integrate, stats

from numpyro_spread import (
    GaussianNoise,
    ImplicitDistribution,
    LaplaceNoise,
    LogisticNoise,
    SemiImplicitELBO,
)

# (s, x) and log p(x) of z ~ N(0, 1), x ~ N(z, s²).
CASES = {(1.0, 2.0): -2.26551212, (0.1, 2.0): -2.90411172, (0.1, 5.0): -13.30015132}
EPS = dist.Normal(0.0, 1.0)
NOISE = {"z": GaussianNoise(0.3)}
PARAMS = {"m": jnp.array(0.3), "t": jnp.array(0.4)}


def conjugate(s, x):
    mean, sd = x / (1 + s**2), s / math.sqrt(1 + s**2)

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, s), obs=jnp.array(x))

    def guide():
        numpyro.sample("z", ImplicitDistribution(lambda e: mean + 0.9 * sd * e, EPS, ()))

    return model, guide, mean, 0.9 * sd, 0.5 * sd


def exact_elbo(s, x, m, variance):
    """Of q = N(m, variance)."""
    likelihood = -0.5 * math.log(2 * math.pi * s**2) - ((x - m) ** 2 + variance) / (2 * s**2)
    prior = -0.5 * math.log(2 * math.pi) - (m**2 + variance) / 2
    return likelihood + prior + 0.5 * math.log(2 * math.pi * math.e * variance)


def average(loss, model, guide, *args, n=2000, params=PARAMS):
    """Mean and standard error of the bound."""
    run = jax.jit(jax.vmap(lambda key: -loss.loss(key, params, model, guide, *args)))
    values = run(random.split(random.key(0), n))
    return float(values.mean()), float(values.std()) / math.sqrt(n)


def normal_model(x=2.0):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def affine(x=2.0):
    m, t = numpyro.param("m", 0.0), numpyro.param("t", 1.0)
    numpyro.sample("z", ImplicitDistribution(Partial(lambda m, t, e: m + t * e, m, t), EPS, ()))


# --- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "x"), CASES)
def test_the_gap_to_the_exact_elbo_shrinks_with_k_and_log_p_is_a_ceiling(s, x):
    model, guide, m, t, sigma = conjugate(s, x)
    elbo = exact_elbo(s, x, m, t**2 + sigma**2)
    assert elbo < CASES[s, x]
    gaps, errors = [], []
    for k in (0, 2, 10, 100):
        loss = SemiImplicitELBO({"z": GaussianNoise(sigma)}, k)
        value, error = average(loss, model, guide, n=6000)
        assert value < CASES[s, x] + 4 * error
        gaps.append(elbo - value)
        errors.append(error)
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] - 3 * (errors[2] + errors[3])
    assert gaps[0] > 0.3
    assert -4 * errors[3] < gaps[3] < 0.05 + 4 * errors[3]


def test_without_further_draws_it_is_the_hierarchical_bound():
    model, guide, m, t, sigma = conjugate(1.0, 2.0)
    value, error = average(SemiImplicitELBO({"z": GaussianNoise(sigma)}, 0), model, guide)
    marginal = t**2 + sigma**2
    expected = exact_elbo(1.0, 2.0, m, marginal) - 0.5 * math.log(marginal / sigma**2)
    assert abs(value - expected) < 4 * error


def test_the_density_is_that_of_the_mixture():
    seen = {}

    def model():
        seen["z"] = numpyro.sample("z", dist.Normal(0.0, 1.0))

    def fn(eps):
        seen["psi"] = 0.3 + 0.4 * eps
        return seen["psi"]

    def guide():
        numpyro.sample("z", ImplicitDistribution(fn, EPS, ()))

    value = -SemiImplicitELBO(NOISE, 7).loss(random.key(0), {}, model, guide)
    assert seen["psi"].shape == (8,)
    log_q = jnp.log(jnp.mean(jnp.exp(dist.Normal(seen["psi"], 0.3).log_prob(seen["z"]))))
    expected = dist.Normal(0.0, 1.0).log_prob(seen["z"]) - log_q
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_every_draw_carries_gradients():
    def of(shift):
        def guide():
            # A single draw, as where only shapes are looked at, has no leading dimension.
            fn = ImplicitDistribution(lambda e: 0.4 * e + (shift if e.ndim else 0.0), EPS, ())
            numpyro.sample("z", fn)

        return SemiImplicitELBO(NOISE, 4).loss(random.key(0), {}, normal_model, guide)

    grads = jax.grad(of)(jnp.zeros(5))
    assert bool((grads != 0).all())


def test_training_comes_close_to_log_p():
    loss = SemiImplicitELBO({"z": GaussianNoise(0.4)}, 30, Trace_ELBO(8))
    svi = SVI(normal_model, loss.register(normal_model, affine), numpyro.optim.Adam(0.02), loss)
    params = svi.run(random.key(0), 600, progress_bar=False).params
    assert float(params["m"]) == pytest.approx(1.0, abs=0.1)
    assert float(params["t"]) ** 2 + 0.4**2 == pytest.approx(0.5, abs=0.12)
    fine = SemiImplicitELBO({"z": GaussianNoise(0.4)}, 300)
    value, error = average(fine, normal_model, affine, params=params)
    assert CASES[1.0, 2.0] - 0.03 < value < CASES[1.0, 2.0] + 4 * error


# --- how it composes -----------------------------------------------------------------------------

ELBOS = {
    "Trace, particles": lambda: Trace_ELBO(3),
    "Trace, in turn": lambda: Trace_ELBO(3, vectorize_particles=False),
    "Graph": lambda: infer.TraceGraph_ELBO(),
    "MeanField": lambda: infer.TraceMeanField_ELBO(),
    "Enum": lambda: infer.TraceEnum_ELBO(),
}


@pytest.mark.parametrize("name", ELBOS)
def test_stock_elbos_agree(name):
    loss = SemiImplicitELBO(NOISE, 5, ELBOS[name]())
    value, error = average(loss, normal_model, affine)
    expected, its_error = average(SemiImplicitELBO(NOISE, 5), normal_model, affine)
    assert abs(value - expected) < 4 * math.hypot(error, its_error)
    assert loss.can_infer_discrete == loss.elbo.can_infer_discrete
    grads = jax.grad(lambda p: loss.loss(random.key(0), p, normal_model, affine))(PARAMS)
    assert float(grads["t"]) != 0


def test_the_importance_weighted_bound_is_tighter_and_below_log_p():
    plain, _ = average(SemiImplicitELBO(NOISE, 5), normal_model, affine)
    elbo = infer.RenyiELBO(alpha=0.0, num_particles=50)
    value, error = average(SemiImplicitELBO(NOISE, 5, elbo), normal_model, affine, n=400)
    assert plain + 0.1 < value < CASES[1.0, 2.0] + 4 * error


@pytest.mark.parametrize("vectorize", [True, False])
def test_particles_draw_independently(vectorize):
    seen = []

    def fn(eps):
        jax.debug.callback(lambda e: seen.append(np.asarray(e)), eps)
        return eps

    def guide():
        numpyro.sample("z", ImplicitDistribution(fn, EPS, ()))

    elbo = Trace_ELBO(4, vectorize_particles=vectorize)
    SemiImplicitELBO(NOISE, 2, elbo).loss(random.key(0), {}, normal_model, guide)
    jax.effects_barrier()
    assert len(np.unique(np.concatenate([e.ravel() for e in seen]))) == 12


def test_sites_apart():
    loss = SemiImplicitELBO(NOISE, 5, Trace_ELBO(sum_sites=False))
    sites = loss.loss(random.key(0), PARAMS, normal_model, affine)
    whole = SemiImplicitELBO(NOISE, 5).loss(random.key(0), PARAMS, normal_model, affine)
    assert float(sites["x"] + sites["z"]) == pytest.approx(float(whole), rel=1e-5)


def test_plates_scale_and_subsample():
    data = jnp.linspace(-1, 1, 6)

    def model(size):
        with numpyro.plate("data", 6, subsample_size=size) as index:
            z = numpyro.sample("z", dist.Normal(jnp.zeros(len(index)), 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=data[index])

    def guide(size):
        with numpyro.plate("data", 6, subsample_size=size) as index:
            loc = 0.5 * data[index]
            numpyro.sample("z", ImplicitDistribution(lambda e: loc + 0.5 * e, EPS, ()))

    loss = SemiImplicitELBO({"z": GaussianNoise(0.4)}, 10)
    full, error = average(loss, model, guide, 6)
    part, its_error = average(loss, model, guide, 2, n=4000)
    assert abs(full - part) < 4 * math.hypot(error, its_error)
    assert full < float(dist.Normal(0.0, math.sqrt(2)).log_prob(data).sum())


MASK = jnp.array([True, False, True])


@pytest.mark.parametrize("how", ["distribution", "handler"])
def test_masked_elements_count_for_nothing(how):
    data = jnp.array([0.5, 0.0, -1.0])

    def handler():
        return handlers.mask(mask=MASK if how == "handler" else True)

    def masked(fn):
        return fn.mask(MASK) if how == "distribution" else fn

    def model():
        with numpyro.plate("data", 3), handler():
            z = numpyro.sample("z", masked(dist.Normal(jnp.zeros(3), 1.0)))
            numpyro.sample("x", masked(dist.Normal(z, 1.0)), obs=data)

    def guide():
        m = numpyro.param("masked", jnp.zeros(3))
        with numpyro.plate("data", 3), handler():
            fn = Partial(lambda m, e: m + 0.5 * e, m)
            numpyro.sample("z", masked(ImplicitDistribution(fn, EPS.expand([3]), ())))

    loss = SemiImplicitELBO({"z": GaussianNoise(0.4)}, 10)
    params = {"masked": jnp.zeros(3)}
    grads = jax.grad(lambda p: loss.loss(random.key(0), p, model, guide))(params)["masked"]
    assert float(grads[1]) == 0
    assert bool((grads[MASK] != 0).all())
    value, error = average(loss, model, guide, params=params)
    ceiling = float(dist.Normal(0.0, math.sqrt(2)).log_prob(data[MASK]).sum())
    assert ceiling - 0.5 < value < ceiling + 4 * error


@pytest.mark.parametrize("wrap", ["to_event", "mask outside", "expanded", "transformed"])
def test_wrappers_around_the_implicit_distribution(wrap):
    def model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=1.0)

    whole = ImplicitDistribution(lambda e: 0.3 + 0.5 * e, EPS.expand([2]).to_event(1), (2,))

    def wrapped():
        one = ImplicitDistribution(lambda e: 0.3 + 0.5 * e, EPS.expand([2]), ())
        if wrap == "to_event":
            return one.to_event(1)
        if wrap == "mask outside":
            return one.to_event(1).mask(jnp.array(True))
        if wrap == "expanded":
            return dist.ExpandedDistribution(whole, ())
        plain = ImplicitDistribution(lambda e: e, EPS.expand([2]).to_event(1), (2,))
        shift = dist.transforms.IndependentTransform(dist.transforms.AffineTransform(0.3, 0.5), 1)
        return dist.TransformedDistribution(plain, shift)

    loss = SemiImplicitELBO({"z": GaussianNoise(0.4)}, 4)
    values = [
        loss.loss(random.key(3), {}, model, lambda make=make: numpyro.sample("z", make()))
        for make in (wrapped, lambda: whole)
    ]
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-5)


def test_two_implicit_sites_and_one_with_a_density():
    def model():
        total = sum(numpyro.sample(site, dist.Normal(0.0, 1.0)) for site in "abc")
        numpyro.sample("x", dist.Normal(total, 1.0), obs=2.0)

    def guide():
        for site in "ab":
            numpyro.sample(site, ImplicitDistribution(lambda e: 0.5 + 0.3 * e, EPS, ()))
        numpyro.sample("c", dist.Normal(0.5, 0.5))

    noise = {"a": GaussianNoise(0.4), "b": LaplaceNoise(0.3)}
    value, error = average(SemiImplicitELBO(noise, 200), model, guide)
    # The marginal of b has no closed form, its entropy is a quadrature.
    grid = np.linspace(-6, 7, 20001)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    density = sum(
        w * stats.laplace.pdf(grid, 0.5 + 0.3 * n, 0.3) for n, w in zip(nodes, weights, strict=True)
    ) / math.sqrt(2 * math.pi)
    entropy_b = -integrate.trapezoid(density * np.log(density), grid)
    variances = [0.25, 0.3**2 + 2 * 0.3**2, 0.25]
    entropies = 2 * 0.5 * math.log(2 * math.pi * math.e * 0.25) + entropy_b
    priors = sum(-0.5 * math.log(2 * math.pi) - (0.25 + v) / 2 for v in variances)
    likelihood = -0.5 * math.log(2 * math.pi) - (0.5**2 + sum(variances)) / 2
    expected = likelihood + priors + entropies
    assert expected - 0.03 - 4 * error < value < expected + 4 * error


def test_an_auxiliary_site_is_in_unconstrained_space():
    def model():
        z = numpyro.sample("z", dist.LogNormal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(jnp.log(z), 1.0), obs=2.0)

    def guide():
        fn = ImplicitDistribution(lambda e: 1 + 0.5 * e, EPS, ())
        u = numpyro.sample("_u", fn, infer={"is_auxiliary": True})
        numpyro.sample("z", dist.Delta(jnp.exp(u), log_density=-u))

    value, error = average(SemiImplicitELBO({"_u": GaussianNoise(0.5)}, 100), model, guide)
    assert CASES[1.0, 2.0] - 0.03 < value < CASES[1.0, 2.0] + 4 * error


# --- constrained supports ------------------------------------------------------------------------


def test_log_normal_latent_against_the_closed_form():
    def model():
        z = numpyro.sample("z", dist.LogNormal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(jnp.log(z), 1.0), obs=2.0)

    def guide():
        numpyro.sample("z", ImplicitDistribution(lambda e: jnp.exp(1 + 0.5 * e), EPS, ()))

    value, error = average(SemiImplicitELBO({"z": GaussianNoise(0.5)}, 100), model, guide)
    assert CASES[1.0, 2.0] - 0.03 < value < CASES[1.0, 2.0] + 4 * error


def test_half_normal_latent_against_quadrature():
    def model():
        z = numpyro.sample("z", dist.HalfNormal(1.0))
        numpyro.sample("x", dist.Normal(0.0, z + 0.1), obs=1.5)

    def guide():
        numpyro.sample("z", ImplicitDistribution(lambda e: jnp.exp(0.2 + 0.3 * e), EPS, ()))

    def joint(z):
        return stats.halfnorm.pdf(z) * stats.norm.pdf(1.5, 0, z + 0.1)

    def log_q(z):
        return stats.lognorm.logpdf(z, math.hypot(0.3, 0.4), scale=math.exp(0.2))

    exact = integrate.quad(
        lambda z: math.exp(log_q(z)) * (math.log(joint(z)) - log_q(z)), 1e-4, 30, limit=200
    )[0]
    value, error = average(SemiImplicitELBO({"z": GaussianNoise(0.4)}, 100), model, guide, n=4000)
    assert exact - 0.03 - 4 * error < value < exact + 4 * error


def correlation(e):
    rho = 0.5 * jnp.tanh(e[..., 0])
    one, zero = jnp.ones_like(rho), jnp.zeros_like(rho)
    rows = [jnp.stack([one, zero], -1), jnp.stack([rho, jnp.sqrt(1 - rho**2)], -1)]
    return jnp.stack(rows, -2)


@pytest.mark.parametrize(
    ("prior", "fn", "base"),
    [
        (dist.Dirichlet(jnp.ones(3)), jax.nn.softmax, EPS.expand([3]).to_event(1)),
        (dist.Uniform(1.0, 5.0), lambda e: 1 + 4 * jax.nn.sigmoid(e), EPS),
        (
            dist.Uniform(jnp.array([0.0, 1.0]), 5.0).to_event(1),
            lambda e: jnp.array([0.0, 1.0]) + jnp.array([5.0, 4.0]) * jax.nn.sigmoid(e),
            EPS.expand([2]).to_event(1),
        ),
        (dist.LKJCholesky(2), correlation, EPS.expand([1]).to_event(1)),
    ],
    ids=["simplex", "interval", "intervals", "correlation"],
)
def test_the_density_integrates_to_one_on_other_supports(prior, fn, base):
    # E_q[p / q] = 1 for the mixture q, which needs its Jacobian, event dims included, to be right.
    def model():
        numpyro.sample("z", prior)

    def guide():
        numpyro.sample("z", ImplicitDistribution(fn, base, prior.event_shape))

    loss = SemiImplicitELBO({"z": LogisticNoise(1.2)}, 6)  # tails as heavy as the prior
    log_w = jax.jit(jax.vmap(lambda key: -loss.loss(key, {}, model, guide)))
    weights = jnp.exp(log_w(random.split(random.key(1), 4000)))
    assert abs(float(weights.mean()) - 1) < 5 * float(weights.std()) / math.sqrt(4000)
    assert float(weights.std()) < 3
