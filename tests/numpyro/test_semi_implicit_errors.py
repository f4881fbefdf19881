# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""What the semi-implicit bound refuses, with the way out."""

import math

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from numpyro.infer.elbo import ELBO
from numpyro_semi_implicit import DATA, EPS, KEY, NOISE, evaluate, guide, implicit, model

from numpyro_spread import (
    ChannelNoise,
    GaussianNoise,
    ImplicitDistribution,
    LowRankGaussianNoise,
    SemiImplicitELBO,
    TransformedNoise,
)


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
    for bad_guide in (outside, on_the_boundary):
        with pytest.raises(ValueError, match=r"guide site 'z': fn .* outside of the interior of"):
            evaluate(loss, model, bad_guide)
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
