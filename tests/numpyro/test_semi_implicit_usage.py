# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The semi-implicit bound in use: learned scales, Predictive, jit, and what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.tree_util import Partial
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.primitives import mutable
from numpyro_semi_implicit import DATA, EPS, KEY, NOISE, PARAMS, evaluate, guide, implicit, model

from numpyro_spread import (
    GaussianNoise,
    ImplicitDistribution,
    LowRankGaussianNoise,
    SemiImplicitELBO,
)

# --- scales that are learned ---------------------------------------------------------------------


def learned(x):
    return {"z": GaussianNoise(numpyro.param("sigma", 0.2, constraint=constraints.positive))}


def test_a_learned_scale_moves_to_the_optimum():
    # q = N(slope x, 0.16 + sigma²), the posterior N(x / 2, 1/2): sigma² = .34.
    loss = SemiImplicitELBO(learned, 50, Trace_ELBO(20))
    svi = SVI(model, loss.register(model, guide), numpyro.optim.Adam(0.03), loss)
    params = svi.run(KEY, 300, DATA, progress_bar=False).params
    assert float(params["sigma"]) == pytest.approx(math.sqrt(0.34), abs=0.06)
    # The registered guide, which knows sigma, is otherwise the guide.
    assert Predictive(loss.register(model, guide), params=params, num_samples=3)(KEY)[
        "z"
    ].shape == (3, 5)


def test_params_of_the_noise_that_nobody_registered():
    loss = SemiImplicitELBO(learned)
    svi = SVI(model, guide, numpyro.optim.Adam(0.03), loss)
    state = svi.init(KEY, DATA)
    with pytest.raises(ValueError, match=r"param site\(s\) \['sigma'\].*loss\.register"):
        svi.update(state, DATA)


def test_an_amortised_scale_gets_gradients():
    def noise(x):
        w = numpyro.param("w", jnp.zeros(2))
        return {"z": GaussianNoise(jnp.exp(w[0] + w[1] * x))}

    loss = SemiImplicitELBO(noise, elbo=Trace_ELBO(20))
    params = {**PARAMS, "w": jnp.zeros(2)}
    grads = jax.grad(lambda p: loss.loss(KEY, p, model, guide, DATA))(params)
    assert bool((grads["w"] != 0).all())
    svi = SVI(model, loss.register(model, guide), numpyro.optim.Adam(0.03), loss)
    state, value = jax.jit(svi.update)(svi.init(KEY, DATA), DATA)
    assert math.isfinite(float(value))
    assert bool((svi.get_params(state)["w"] != 0).all())


def test_a_kernel_that_couples_elements():
    def model(x):
        numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))

    def guide(x):
        implicit(base=EPS.expand([3]).to_event(1), event_shape=(3,))

    kernel = LowRankGaussianNoise(0.3, jnp.ones((3, 1)))
    assert math.isfinite(evaluate(SemiImplicitELBO({"z": kernel}), model, guide))


def test_noise_of_the_guide_may_be_discrete_if_it_is_fixed():
    def guide(x):
        points = numpyro.param("points", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", 5):
            fn = Partial(lambda points, e: points[e.astype(int)], points)
            implicit(fn=fn, base=dist.Bernoulli(0.5))

    loss = SemiImplicitELBO(NOISE)
    params = {"points": jnp.array([-1.0, 1.0])}
    grads = jax.grad(lambda p: loss.loss(KEY, p, model, guide, DATA))(params)
    assert bool((grads["points"] != 0).all())


def test_learned_noise_without_a_gradient():
    def guide(x):
        p = numpyro.param("p", 0.5)
        with numpyro.plate("data", 5):
            fn = ImplicitDistribution(lambda e: e.astype(float), dist.Bernoulli(p), ())
            numpyro.sample("z", fn.mask(True))

    loss = SemiImplicitELBO(NOISE)
    with pytest.raises(NotImplementedError, match=r"latent site 'z': draws of Bernoulli"):
        jax.grad(lambda p: loss.loss(KEY, p, model, guide, DATA))({"p": jnp.array(0.5)})


# --- jit and state -------------------------------------------------------------------------------


def test_jit_gives_the_same_value():
    def positive(x):
        with numpyro.plate("data", 5):
            z = numpyro.sample("z", dist.LogNormal(jnp.zeros(5), 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", 5):
            implicit(fn=jnp.exp)

    loss = SemiImplicitELBO(NOISE)
    jitted = jax.jit(lambda key, x: loss.loss(key, {}, positive, guide, x))
    assert float(jitted(KEY, DATA)) == pytest.approx(evaluate(loss, positive, guide), rel=1e-5)


def test_mutable_state_passes():
    def counting(x):
        steps = mutable("steps", {"n": jnp.array(0)})
        steps["n"] = steps["n"] + 1
        guide(x)

    loss = SemiImplicitELBO(NOISE)
    svi = SVI(model, counting, numpyro.optim.Adam(0.03), loss)
    state = svi.init(KEY, DATA)
    start = int(state.mutable_state["steps"]["n"])
    state, value = svi.update(state, DATA)
    assert int(state.mutable_state["steps"]["n"]) == start + 1
    assert math.isfinite(float(value))
    several = SemiImplicitELBO(NOISE, elbo=Trace_ELBO(2))
    svi = SVI(model, counting, numpyro.optim.Adam(0.03), several)
    state = svi.init(KEY, DATA)
    with pytest.raises(NotImplementedError, match="mutable state, and num_particles=2"):
        svi.update(state, DATA)


# --- draws ---------------------------------------------------------------------------------------


def test_the_guide_itself_has_no_noise_and_the_spread_guide_has():
    loss = SemiImplicitELBO(NOISE)

    def exact(x=DATA):
        with numpyro.plate("data", 5):
            implicit(fn=lambda e: DATA + 0 * e)

    clean = Predictive(exact, num_samples=20)(KEY, DATA)["z"]
    np.testing.assert_array_equal(clean, jnp.broadcast_to(DATA, (20, 5)))
    spread = loss.spread_guide(model, exact)
    for parallel in (False, True):
        noisy = Predictive(spread, num_samples=400, parallel=parallel)(KEY, DATA)["z"]
        residual = noisy - DATA
        assert float(residual.std()) == pytest.approx(0.3, rel=0.1)
        assert len(np.unique(residual)) > 1900


def test_predictive_of_the_model_through_the_spread_guide():
    loss = SemiImplicitELBO(learned)
    spread = loss.spread_guide(model, guide)
    params = {**PARAMS, "sigma": jnp.array(5.0)}
    draws = Predictive(model, guide=spread, params=params, num_samples=300)(KEY, None)
    assert draws["x"].shape == (300, 5)
    assert float(draws["x"].std()) > 4  # the scale is the given one


def test_the_spread_guide_respects_the_support():
    def model():
        numpyro.sample("z", dist.HalfNormal(numpyro.param("width", 1.0)))

    def guide():
        implicit(fn=jnp.exp)

    spread = SemiImplicitELBO({"z": GaussianNoise(2.0)}).spread_guide(model, guide)
    draws = Predictive(spread, params={}, num_samples=200)(KEY)["z"]
    assert bool((draws > 0).all())
    assert float(jnp.log(draws).std()) > 1.8  # sqrt(1 + 4) with the noise, 1 without


def test_plates_outside_of_the_spread_guide():
    def guide():
        implicit()

    with handlers.seed(rng_seed=0), numpyro.plate("outer", 7):
        z = handlers.trace(
            SemiImplicitELBO(NOISE).spread_guide(lambda: None, guide)
        ).get_trace()["z"]  # fmt: skip
    assert len(np.unique(z["value"])) == 7
    with pytest.raises(NotImplementedError, match="has no density"):
        z["fn"].log_prob(z["value"])
