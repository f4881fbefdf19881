# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of PriorContrastELBO, against stock ELBOs of guides that have a density.

The critics here are told the log-ratio. Draws of an implicit guide and of its twin are the same
under the same key, so that most comparisons are exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen
from jax import random
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from numpyro_contrast import (
    CRITIC,
    KNOWN,
    PARAMS,
    Told,
    X,
    affine,
    frozen,
    guide,
    logits_of,
    normal,
    silent,
    total,
    value_and_grads,
    value_of,
)

from numpyro_spread import GaussianNoise, PriorContrastELBO, SpreadELBO


def assert_equal(ours, stock, rtol=2e-5):
    """Values, and gradients of all params that the stock ELBO has."""
    np.testing.assert_allclose(ours[0], stock[0], rtol=rtol)
    for name, grad in stock[1].items():
        np.testing.assert_allclose(ours[1][name], grad, rtol=rtol, atol=2e-5, err_msg=name)


# --- everything at once: hierarchy, global and local, with and without density

MIXED = {
    "mw": jnp.asarray(0.2),
    "mv": jnp.asarray(-0.3),
    "m": jnp.asarray(0.7),
    "s": jnp.asarray(0.6),
    "mu": jnp.asarray(0.3),
}
MASK = jnp.asarray([True, False, True, True])
SCALE = jnp.asarray([1.0, 0.5, 2.0, 3.0])


def subplate(x):
    return numpyro.plate("data", len(x), subsample_size=4)


def wrapped(how):
    handler = {
        "mask": lambda: handlers.mask(mask=MASK),
        "scale": lambda: handlers.scale(scale=SCALE),
        "none": lambda: handlers.mask(mask=True),
    }
    return handler[how]()


def mixed_model(x, how="none"):
    mu = numpyro.param("mu", 0.3)
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    v = numpyro.sample("v", dist.Normal(mu + w, 1.0))
    with subplate(x) as indices, wrapped(how):
        z = numpyro.sample("z", dist.Normal(mu * w + v, 1.0))
        a = numpyro.sample("a", dist.Normal(z, 2.0))
        numpyro.sample("x", dist.Normal(a + z, 0.5), obs=x[indices])


def log_q(site, p, value, w, x=None):
    if site == "v":
        return normal(value, p["mv"] + 0.3 * w, 0.4)
    return normal(value, p["m"] * x + w, p["s"])


def mixed_guide(x, how="none", twin=False):
    p = {name: numpyro.param(name, MIXED[name]) for name in ("mw", "mv", "m", "s")}
    q = frozen(p)
    w = numpyro.sample("w", dist.Normal(p["mw"], 0.5))
    known = (lambda value: log_q("v", q, value, w)) if twin else None
    numpyro.sample("v", affine(p["mv"] + 0.3 * w, 0.4, known))
    with subplate(x) as indices, wrapped(how):
        at = x[indices]
        known = (lambda value: log_q("z", q, value, w, at)) if twin else None
        z = numpyro.sample("z", affine(p["m"] * at + w, p["s"], known))
        numpyro.sample("a", dist.Normal(0.5 * z, 0.3))


def critic_v(values, *args, **kwargs):
    w = values.arguments["w"]
    assert not {"v", "z", "a"} & set(values.arguments)
    return log_q("v", MIXED, values["v"], w) - normal(values["v"], MIXED["mu"] + w, 1.0)


def critic_z(values, *args, **kwargs):
    w, v, x = (values.arguments[name] for name in ("w", "v", "x"))
    assert w.shape == v.shape == x.shape == (4,)
    assert "a" not in values.arguments
    return log_q("z", MIXED, values["z"], w, x) - normal(values["z"], MIXED["mu"] * w + v, 1.0)


CRITICS = {"v": Told(critic_v), "z": Told(critic_z)}


class Head(linen.Module):
    """The wrong Gaussian, on purpose."""

    @linen.compact
    def __call__(self, x, how="none"):
        loc = self.param("loc", linen.initializers.constant(0.1), ())
        return {"v": (loc, 0.9), "z": (0.5 * x + loc, 0.8)}


def against_head(values, site):
    x = values.arguments["x"] if site == "z" else None
    loc, scale = (0.1, 0.9) if site == "v" else (0.5 * x + 0.1, 0.8)
    value = loc + scale * values[site]
    return log_q(site, MIXED, value, values.arguments["w"], x) - normal(value, loc, scale)


HEADED = {
    "v": Told(lambda values, *args, **kwargs: against_head(values, "v")),
    "z": Told(lambda values, *args, **kwargs: against_head(values, "z")),
}


@pytest.mark.parametrize(
    ("contrast", "how"),
    [
        ("prior", "none"),
        ("prior", "mask"),
        pytest.param("prior", "scale", marks=pytest.mark.slow),
        pytest.param("head", "mask", marks=pytest.mark.slow),
        ("head", "scale"),
    ],
)
def test_mixed_sites_equal_the_twin_that_has_a_density(contrast, how):
    params = {**MIXED, CRITIC: {"v": KNOWN, "z": KNOWN}}
    if contrast == "prior":
        loss = PriorContrastELBO(CRITICS, adaptive=False)
    else:
        loss = PriorContrastELBO(HEADED, head=Head())
        params["discriminator$head"] = {"loc": jnp.asarray(0.1)}
    ours = value_and_grads(loss, params, mixed_model, mixed_guide, X, how)

    def twin(x, how):
        mixed_guide(x, how, twin=True)

    stock = value_and_grads(Trace_ELBO(), MIXED, mixed_model, twin, X, how)
    assert_equal(ours, stock)
    if how == "none":  # other draws give other values: the comparison says something
        other = value_and_grads(Trace_ELBO(), MIXED, mixed_model, twin, X, how, seed=1)
        assert abs(other[0] - stock[0]) > 0.1


def test_masked_data_have_no_influence():
    def partly(x):
        with numpyro.plate("data", len(x)), handlers.mask(mask=jnp.isfinite(x)):
            missing = jnp.where(jnp.isfinite(x), 0.0, jnp.nan)
            numpyro.sample("z", affine(numpyro.param("m", 0.7) + missing, 0.6))

    def partly_model(x):
        with numpyro.plate("data", len(x)), handlers.mask(mask=jnp.isfinite(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            clean = jnp.isfinite(x)
            loc = jnp.where(clean, z, 0.0)
            numpyro.sample("x", dist.Normal(loc, 0.5), obs=jnp.where(clean, x, 0.0))

    x = X.at[1].set(jnp.nan)
    params = {"m": PARAMS["m"], CRITIC: {"gain": jnp.asarray(0.2)}}
    for adaptive in (True, False):
        loss = PriorContrastELBO(Told(total), adaptive=adaptive)
        value, grads = value_and_grads(loss, params, partly_model, partly, x)
        assert np.isfinite([value, *jax.tree.leaves(grads)]).all()
        assert grads[CRITIC]["gain"] != 0
        masked = value_and_grads(loss, params, partly_model, partly, jnp.full(6, jnp.nan))
        assert masked[0] == 0
        assert not np.any(jax.tree.leaves(masked[1]))


# --- without an implicit site

DENSE = {**MIXED, CRITIC: {"gain": jnp.asarray(0.2)}}


def dense_guide(x, how="none"):
    p = {name: numpyro.param(name, MIXED[name]) for name in ("mw", "mv", "m", "s")}
    w = numpyro.sample("w", dist.Normal(p["mw"], 0.5))
    numpyro.sample("v", dist.Normal(p["mv"] + w, 0.4))
    with subplate(x) as indices, wrapped(how):
        z = numpyro.sample("z", dist.Normal(p["m"] * x[indices] + w, p["s"]))
        numpyro.sample("a", dist.Normal(z, 0.3))


PARTICLES = {
    "one": {},
    "three": {"num_particles": 3, "vectorize_particles": False},
    "at once": {"num_particles": 3, "vectorize_particles": True},
}


@pytest.mark.parametrize("options", PARTICLES.values(), ids=PARTICLES)
def test_without_implicit_sites_it_is_the_stock_elbo(options):
    loss = PriorContrastELBO(Told(total), **options)
    ours = value_and_grads(loss, DENSE, mixed_model, dense_guide, X, "scale")
    stock = value_and_grads(Trace_ELBO(**options), MIXED, mixed_model, dense_guide, X, "scale")
    assert_equal(ours, stock, rtol=1e-6)
    assert ours[1][CRITIC]["gain"] == 0
    plain = PriorContrastELBO(Told(total), adaptive=False, **options)
    value = value_of(plain, DENSE, mixed_model, dense_guide, X, "scale")
    np.testing.assert_allclose(value, ours[0], rtol=1e-6)


def delta_model(x):
    mu = numpyro.param("mu", 0.3)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        numpyro.sample("x", dist.Delta(2 * z), obs=x)


@pytest.mark.parametrize("particles", [1, 3])
def test_noise_is_that_of_the_spread_elbo(particles):
    def twin(x):
        m, s = numpyro.param("m", 0.7), numpyro.param("s", 0.6)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", affine(m * x, s, lambda z: normal(z, frozen(m) * x, frozen(s))))

    def critic(values, y):
        y = values.arguments["x"] + 0 * y
        z, m, s = values["z"], PARAMS["m"], PARAMS["s"]
        return normal(z, m * y, s) - normal(z, PARAMS["mu"], 1.0)

    noise = {"x": GaussianNoise(0.3)}
    loss = PriorContrastELBO(Told(critic), noise, adaptive=False, num_particles=particles)
    params = {**PARAMS, CRITIC: KNOWN}
    ours = value_and_grads(loss, params, delta_model, guide, X)
    spread = SpreadELBO(noise, Trace_ELBO(num_particles=particles))
    assert_equal(ours, value_and_grads(spread, PARAMS, delta_model, twin, X))


# --- several sites under one critic

JOINT = {"m": jnp.asarray(0.7), "s": jnp.asarray(0.6), "mu": jnp.asarray(0.3)}


def joint_model(x):
    mu = numpyro.param("mu", 0.3)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(mu, 1.0))
        y = numpyro.sample("y", dist.Normal(z, 0.7))
        numpyro.sample("x", dist.Normal(y + z, 0.5), obs=x)


def joint_guide(x, twin=False):
    m, s = numpyro.param("m", 0.7), numpyro.param("s", 0.6)
    at, wide = frozen(m) * x, frozen(s)
    with numpyro.plate("data", len(x)):
        known = (lambda v: normal(v, at, wide)) if twin else None
        z = numpyro.sample("z", affine(m * x, s, known))
        numpyro.sample(
            "y", affine(z * m, s, (lambda v: normal(v, z * frozen(m), wide)) if twin else None)
        )


def joint_ratio(values, x):
    z, y = values["z"], values["y"]
    m, s, mu = JOINT["m"], JOINT["s"], JOINT["mu"]
    guide_side = normal(z, m * x, s) + normal(y, m * z, s)
    return guide_side - normal(z, mu, 1.0) - normal(y, z, 0.7)


def test_one_critic_for_two_sites_equals_the_twin():
    loss = PriorContrastELBO(Told(joint_ratio), adaptive=False)
    ours = value_and_grads(loss, {**JOINT, CRITIC: KNOWN}, joint_model, joint_guide, X)
    stock = Trace_ELBO()
    assert_equal(
        ours, value_and_grads(stock, JOINT, joint_model, lambda x: joint_guide(x, True), X)
    )


def test_joint_contrast_draws_are_ancestral():
    pairs = []

    def record(values, x):
        pairs.append((values["z"], values["y"]))
        return jnp.zeros(values.batch_shape)

    loss = PriorContrastELBO(Told(record), adaptive=False)
    x = jnp.zeros(20_000)
    loss.logits(random.key(0), {**JOINT, CRITIC: KNOWN}, joint_model, joint_guide, x)
    z, y = (np.array(value) for value in pairs[-1])
    np.testing.assert_allclose([z.mean(), z.std(), (y - z).std()], [0.3, 1.0, 0.7], atol=0.03)
    np.testing.assert_allclose(np.corrcoef(z, y - z)[0, 1], 0, atol=0.03)


def test_single_contrast_draws_are_conditional_on_the_guide():
    def read(values, *args, **kwargs):
        w, v = values.arguments["w"], values.arguments["v"]
        return values["z"] - (MIXED["mu"] * w + v)

    critics = {"v": Told(silent), "z": Told(read)}
    loss = PriorContrastELBO(critics, adaptive=False, num_critic_draws=5000)
    params = {**MIXED, CRITIC: {"v": KNOWN, "z": KNOWN}}
    logits = logits_of(loss, params, mixed_model, mixed_guide, X)["z"]
    assert logits.q.shape == (5000, 4)
    np.testing.assert_allclose(logits.q.mean(0), 0, atol=0.07)
    np.testing.assert_allclose(logits.q.std(0), 1, atol=0.05)
    assert abs(logits.p.mean(0)).max() > 0.2
