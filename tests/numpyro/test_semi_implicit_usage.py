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
from jax import random
from jax.tree_util import Partial
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.elbo import ELBO
from numpyro.primitives import mutable

from numpyro_spread import (
    ChannelNoise,
    GaussianNoise,
    ImplicitDistribution,
    LowRankGaussianNoise,
    SemiImplicitELBO,
    TransformedNoise,
)

EPS = dist.Normal(0.0, 1.0)
NOISE = {"z": GaussianNoise(0.3)}
DATA = jnp.linspace(-1.0, 1.0, 5)
KEY = random.key(0)


def model(x=DATA):
    with numpyro.plate("data", 5):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(5), 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x=DATA):
    slope = numpyro.param("slope", 0.5)
    with numpyro.plate("data", 5):
        fn = Partial(lambda slope, e: slope * DATA + 0.4 * e, slope)
        numpyro.sample("z", ImplicitDistribution(fn, EPS, ()))


PARAMS = {"slope": jnp.array(0.5)}


def implicit(name="z", fn=lambda e: e, base=EPS, event_shape=()):
    return numpyro.sample(name, ImplicitDistribution(fn, base, event_shape))


def evaluate(loss, model=model, guide=guide, *args, params=PARAMS):
    return float(loss.loss(KEY, params, model, guide, *(args or (DATA,))))


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


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [None, {}, GaussianNoise(0.3), 0.3])
def test_noise_must_be_a_dict_of_kernels(noise):
    with pytest.raises(TypeError, match="implicit guide site to a noise kernel, such as"):
        SemiImplicitELBO(noise)


def test_a_value_that_is_no_kernel():
    with pytest.raises(TypeError, match=r"site 'z': expected a noise kernel"):
        SemiImplicitELBO({"z": 0.3})


@pytest.mark.parametrize("num_mixture", [-1, 2.0, "3", None, True])
def test_num_mixture_must_be_a_count(num_mixture):
    with pytest.raises(ValueError, match=r"num_mixture must be an integer of at least 0, got"):
        SemiImplicitELBO(NOISE, num_mixture)


def test_discrete_kernels():
    channel = ChannelNoise.symmetric(3, 0.2)
    hidden = TransformedNoise(dist.transforms.ExpTransform(), channel)
    for kernel in (channel, hidden):
        with pytest.raises(ValueError, match=r"site 'z': ChannelNoise is a discrete kernel"):
            SemiImplicitELBO({"z": kernel})
        with pytest.raises(ValueError, match=r"site 'z': ChannelNoise is a discrete kernel"):
            evaluate(SemiImplicitELBO(lambda x, kernel=kernel: {"z": kernel}))


def test_elbos_that_do_not_work():
    class Own(ELBO):
        pass

    with pytest.raises(NotImplementedError, match=r"cannot wrap Own: .*Subclass"):
        SemiImplicitELBO(NOISE, elbo=Own())
    with pytest.raises(TypeError, match=r"must be an instance of numpyro\.infer\.elbo\.ELBO"):
        SemiImplicitELBO(NOISE, elbo=Trace_ELBO)
    with pytest.raises(NotImplementedError, match=r"multi_sample_guide=True\): .*num_particles"):
        SemiImplicitELBO(NOISE, elbo=Trace_ELBO(multi_sample_guide=True))


def test_a_site_the_guide_does_not_have():
    loss = SemiImplicitELBO({**NOISE, "w": GaussianNoise(0.1)})
    with pytest.raises(ValueError, match=r"names the site 'w', but .*implicit sites are \['z'\]"):
        evaluate(loss)


def test_a_site_with_a_density():
    def guide(x):
        with numpyro.plate("data", 5):
            numpyro.sample("z", dist.Normal(jnp.zeros(5), 1.0))

    with pytest.raises(ValueError, match=r"guide site 'z', which is a Normal .*Drop it"):
        evaluate(SemiImplicitELBO(NOISE), model, guide)


def test_a_site_whose_value_is_given():
    def observed(x):
        with numpyro.plate("data", 5):
            numpyro.sample("z", ImplicitDistribution(lambda e: e, EPS, ()), obs=x)

    substituted = handlers.substitute(guide, {"z": DATA})
    for fixed in (observed, substituted):
        with pytest.raises(ValueError, match=r"guide site 'z', whose value is observed or set"):
            evaluate(SemiImplicitELBO(NOISE), model, fixed)


def test_an_implicit_site_without_a_kernel():
    def two(x):
        guide(x)
        implicit("w")

    with pytest.raises(ValueError, match=r"'w' is an Impl.* kernels for \['z'\].*PriorContrast"):
        evaluate(SemiImplicitELBO(NOISE), model, two)


def test_fn_that_takes_one_draw_only():
    def single(x):
        with numpyro.plate("data", 5):
            implicit(fn=lambda e: jnp.stack([e, DATA]).sum(0))

    with pytest.raises(ValueError, match=r"guide site 'z': .*leading sample dimensions, .*\(11,\)"):
        evaluate(SemiImplicitELBO(NOISE), model, single)


def test_a_mask_inside_of_the_event():
    def model(x):
        numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def guide(x):
        fn = ImplicitDistribution(lambda e: e, EPS.expand([2]), ())
        numpyro.sample("z", fn.mask(jnp.array([True, False])).to_event(1))

    with pytest.raises(ValueError, match=r"guide site 'z': the mask is inside of to_event"):
        evaluate(SemiImplicitELBO(NOISE), model, guide)


@pytest.mark.parametrize(
    "kernel",
    [
        GaussianNoise(jnp.full((3, 5), 0.3)),
        GaussianNoise(jnp.full((11, 5), 0.3)),
        TransformedNoise(
            dist.transforms.AffineTransform(jnp.zeros((3, 1)), 1.0), GaussianNoise(0.3)
        ),
    ],
)
def test_a_kernel_that_changes_the_shape(kernel):
    with pytest.raises(ValueError, match=r"guide site 'z': its kernel turns .* \(5,\) into"):
        evaluate(SemiImplicitELBO({"z": kernel}))


def test_a_kernel_that_does_not_fit():
    with pytest.raises(ValueError, match=r"site 'z': LowRankGaussianNoise couples"):
        evaluate(SemiImplicitELBO({"z": LowRankGaussianNoise(0.3, jnp.ones((5, 1)))}))


def test_draws_outside_of_the_support():
    def model(x):
        z = numpyro.sample("z", dist.HalfNormal(1.0))
        numpyro.sample("x", dist.Normal(0.0, z), obs=1.0)

    def outside(x):
        implicit(fn=lambda e: e - 10)

    def on_the_boundary(x):
        implicit(fn=lambda e: 0 * e)

    loss = SemiImplicitELBO(NOISE)
    for guide in (outside, on_the_boundary):
        with pytest.raises(ValueError, match=r"guide site 'z': fn .* outside of the interior of"):
            evaluate(loss, model, guide)
    # Values are not known under jit; there the loss says it.
    jitted = jax.jit(lambda key: loss.loss(key, {}, model, outside, DATA))
    assert not math.isfinite(float(jitted(KEY)))


def test_discrete_supports():
    def model(x):
        numpyro.sample("z", dist.Poisson(1.0))

    with pytest.raises(NotImplementedError, match=r"site 'z': no bijection from unconstrained"):
        evaluate(SemiImplicitELBO(NOISE), model, lambda x: implicit())


def moving_with_a_latent(x):
    top = numpyro.sample("top", dist.Uniform(4.0, 5.0))
    numpyro.sample("z", dist.Uniform(0.0, top))


def moving_with_a_param(x):
    numpyro.sample("z", dist.Uniform(0.0, numpyro.param("top_of_z", 2.0)))


def differing_in_a_plate(x):
    with numpyro.plate("data", 2):
        numpyro.sample("z", dist.Uniform(0.0, jnp.array([2.0, 3.0])))


@pytest.mark.parametrize(
    "model", [moving_with_a_latent, moving_with_a_param, differing_in_a_plate]
)  # fmt: skip
def test_supports_that_move(model):
    def guide(x):
        if model is moving_with_a_latent:
            numpyro.sample("top", dist.Uniform(4.0, 5.0))
        if model is differing_in_a_plate:
            with numpyro.plate("data", 2):
                implicit(fn=jax.nn.sigmoid)
        else:
            implicit(fn=jax.nn.sigmoid)

    with pytest.raises(ValueError, match=r"site 'z': the bounds of its support in the model"):
        evaluate(SemiImplicitELBO(NOISE), model, guide, params={"top_of_z": jnp.array(2.0)})


def test_bounds_made_of_data():
    def model(x):
        numpyro.sample("z", dist.Uniform(0.0, jnp.max(x)))

    def guide(x):
        implicit(fn=jax.nn.sigmoid)

    # Known data give known bounds, those of a tracer are not known.
    loss = SemiImplicitELBO(NOISE)
    assert math.isfinite(evaluate(loss, model, guide, DATA + 3))
    with pytest.raises(ValueError, match=r"site 'z': the bounds of its support in the model"):
        jax.jit(lambda x: loss.loss(KEY, {}, model, guide, x))(DATA + 3)


@pytest.mark.parametrize("run", [jax.jit, lambda f: f])
def test_bounds_that_a_plate_expands_are_fixed(run):
    def model(n):
        with numpyro.plate("data", n):
            numpyro.sample("z", dist.Uniform(jnp.zeros(n), 2.0))

    def guide(n):
        with numpyro.plate("data", n):
            implicit(fn=jax.nn.sigmoid)

    loss = SemiImplicitELBO(NOISE)
    for n in (4, 3):
        value = run(lambda key, n=n: loss.loss(key, {}, model, guide, n))(KEY)
        assert math.isfinite(float(value))
